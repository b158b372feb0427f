"""This package's keys in detectron2's yaml configs."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

__all__ = ["add_wsbcn_config", "ws_options"]


def add_wsbcn_config(cfg: CfgNode) -> None:
    """Add the ``MODEL.WSBCN`` node to a config from ``get_cfg()``, before merging files.

    * ``MODEL.WSBCN.STANDARDIZE`` (False): whether ``train_net.py`` standardizes every convolution
      of the finished model that a norm follows. The WS builders and heads standardize their own
      part whatever it says.
    * ``MODEL.WSBCN.EPS`` (1e-5), ``MODEL.WSBCN.EPS_MODE`` ("outside"): as in
      `standardize_convs`.
    * ``MODEL.WSBCN.SYNC_GROUP_SIZE`` (None): ``train_net.py`` pools the statistics of synchronized
      norms in groups of so many processes, or of those of a machine (``"node"``); over all of them
      with None or 0. See `wsbcn_d2.norms.prepare_sync_norms`.

    Norms are chosen with detectron2's own keys: ``MODEL.RESNETS.NORM``, ``MODEL.FPN.NORM``,
    ``MODEL.ROI_BOX_HEAD.NORM``, ``MODEL.ROI_MASK_HEAD.NORM``, ….
    """
    cfg.MODEL.WSBCN = CfgNode(
        {
            "STANDARDIZE": False,
            "EPS": 1e-5,
            "EPS_MODE": "outside",
            # Not 0, which yacs would not let be replaced by "node".
            "SYNC_GROUP_SIZE": None,
        }
    )


def ws_options(cfg: CfgNode) -> dict[str, Any]:
    """``eps``, ``eps_mode`` of a config; nothing where `add_wsbcn_config` was not called."""
    node = cfg.MODEL.get("WSBCN")
    return {} if node is None else {"eps": node.EPS, "eps_mode": node.EPS_MODE}
