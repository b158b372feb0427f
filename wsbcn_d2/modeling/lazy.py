"""Choosing norms in detectron2's lazy configs."""

from __future__ import annotations

from typing import Any

from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, ListConfig, OmegaConf

from .weight_standardization import standardized

__all__ = ["use_norm"]

# Where the norm of a head hides in detectron2's classes; backbones use "norm" alone.
_NORM_KEYS = ("norm", "conv_norm")
# Classes whose norm argument has a default, so that a config may leave the key out.
_DEFAULTED = {
    "FPN": "norm",
    "FastRCNNConvFCHead": "conv_norm",
    "MaskRCNNConvUpsampleHead": "conv_norm",
}


def use_norm(
    model: DictConfig, backbone: Any, head: Any = None, *, standardize: bool = False
) -> DictConfig:
    """Set the norms of a lazily configured R-CNN model, in place.

    Args:
        model: a config of ``GeneralizedRCNN`` as detectron2's ``common/models/mask_rcnn_fpn.py``.
        backbone: norm of the bottom-up network: a name or a callable, see `register_norms`.
        head: norm of FPN, the box head's and the mask head's convolutions, or of a C4 model's res5;
            "" for none. None: as the backbone.
        standardize: whether to standardize every convolution that a norm follows.

    Returns:
        ``model``.

    Raises:
        ValueError: ``model`` has no ``backbone``.
    """
    if "backbone" not in model:
        raise ValueError(f"use_norm needs a model config with a backbone, got keys {list(model)}")
    head = backbone if head is None else head
    bottom_up = model.backbone.get("bottom_up")
    if bottom_up is None:
        _set(model.backbone, backbone)
    else:
        model.backbone.norm = head
        _set(bottom_up, backbone)
    if "roi_heads" in model:
        _set(model.roi_heads, head)
    if standardize:
        model.module_class = _convert_target_to_string(model._target_)
        model._target_ = standardized
    return model


def _set(node: Any, norm: Any) -> None:
    if isinstance(node, ListConfig):
        for item in node:
            _set(item, norm)
    if not isinstance(node, DictConfig):
        return
    target = node.get("_target_")
    default = _DEFAULTED.get(getattr(target, "__name__", str(target).rpartition(".")[2]))
    if default is not None:
        node[default] = norm
    for key in list(node):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        if key in _NORM_KEYS:
            node[key] = norm
        else:
            _set(node[key], norm)
