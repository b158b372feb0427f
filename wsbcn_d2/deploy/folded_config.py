"""The config of a folded detector, for detectron2 alone where it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..checkpoint import describe_model
from ..checkpoint.files import replacing
from ..config import Config
from ..errors import ConfigError
from .fold import Folding

__all__ = ["save_folded"]

# What takes a name's place in the config when all its layers were folded. FrozenBN is only built,
# and then removed: any stock norm would do.
_BCN = dict.fromkeys(("BCN", "BatchBCN", "SyncBCN"), "GN")
_AFFINE = dict.fromkeys(("SN", "SyncSN", "SSN", "BRN", "exactSyncBN"), "FrozenBN")
_CLASSES = {
    "SN": "SwitchNorm2d",
    "SyncSN": "SyncSwitchNorm2d",
    "SSN": "SparseSwitchNorm2d",
    "BRN": "BatchRenorm2d",
    "exactSyncBN": "SyncBatchNorm2d",
}
_YAML_NAMES = {
    "build_ws_resnet_backbone": "build_resnet_backbone",
    "build_ws_resnet_fpn_backbone": "build_resnet_fpn_backbone",
    "build_ws_retinanet_resnet_fpn_backbone": "build_retinanet_resnet_fpn_backbone",
    "WSFastRCNNConvFCHead": "FastRCNNConvFCHead",
    "WSMaskRCNNConvUpsampleHead": "MaskRCNNConvUpsampleHead",
    "WSRes5ROIHeads": "Res5ROIHeads",
}
_NEEDS_US = """
import wsbcn_d2

wsbcn_d2.register_norms()  # for {names}
"""
# detectron2's own layers have no bias where a norm follows.
_CONFIG = '''"""A folded detector: LazyConfig.load of this file, and model.pth beside it.

Written by fold_model. Layers that a norm was folded into have a bias, which detectron2's builders
do not give them, so it is added here.
"""

from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
{needs}
BIASED = {biased}
REMOVED = {removed}


def folded(module_class, **kwargs):
    """The model, with a bias on the BIASED convolutions, and no norm on the REMOVED ones."""
    model = locate(module_class)(**kwargs)
    for name in BIASED:
        conv = model.get_submodule(name)
        conv.bias = torch.nn.Parameter(torch.zeros(conv.out_channels))
        if name in REMOVED:
            conv.norm = None
    return model


_cfg = LazyConfig.load(str(Path(__file__).with_name("config.yaml")))
model = _cfg.model
model.module_class = model._target_
model._target_ = folded
dataloader, train = _cfg.dataloader, _cfg.train
optimizer, lr_multiplier = _cfg.get("optimizer", {{}}), _cfg.get("lr_multiplier", {{}})
data = _cfg.get("data", {{}})
'''


def save_folded(folding: Folding, cfg: Config, folder: str) -> Path:
    """Write ``model.pth`` and its config; returns the config's path.

    That is ``config.yaml``, or where convolutions got a bias ``config.py``, which reads it.

    Args:
        folding: from `fold_model`.
        cfg: of the detector before; left as it is.
        folder: made if it is not there.

    Raises:
        ConfigError: a bias is needed, and the config is one of detectron2's yaml files, which have
            no way to say so.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    weights = str(Path(folder, "model.pth").absolute())
    lazy = not isinstance(cfg, CfgNode)
    if folding.biased and not lazy:
        raise ConfigError(
            f"{len(folding.biased)} convolutions would get a bias ({folding.biased[0]}, …), which "
            "detectron2's yaml configs cannot say; take a lazy config"
        )
    cfg = cfg.copy() if lazy else cfg.clone()
    if lazy:
        _plain_lazy(cfg, folding)
        cfg.train.init_checkpoint = weights
    else:
        _plain_yaml(cfg)
        cfg.MODEL.WEIGHTS = weights
    with replacing(weights) as file:
        norms = describe_model(folding.model)
        torch.save({"model": folding.model.state_dict(), "norms": norms}, file)
    file_name = Path(folder, "config.yaml")
    if lazy:
        LazyConfig.save(cfg, str(file_name))
    else:
        file_name.write_text(_known(cfg, get_cfg()).dump())
    if folding.biased:
        file_name = Path(folder, "config.py")
        remaining = ", ".join(folding.remaining)
        needs = _NEEDS_US.format(names=remaining) if remaining else ""
        text = _CONFIG.format(needs=needs, biased=folding.biased, removed=folding.removed)
        file_name.write_text(text)
    return file_name


def _plain_lazy(cfg: DictConfig, folding: Folding) -> None:
    if "module_class" in cfg.model:  # of `standardized`
        cfg.model._target_ = cfg.model.pop("module_class")
        for key in ("ws_eps", "ws_eps_mode"):
            cfg.model.pop(key, None)
    names = {} if "BatchChannelNorm2d" in folding.remaining else dict(_BCN)
    for name, stock in _AFFINE.items():
        if _CLASSES[name] not in folding.remaining:
            names[name] = stock
    _rename(cfg.model, names)


def _rename(node: Any, names: dict[str, str]) -> None:
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        if isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, str(key)):
            continue
        value = node[key]
        if isinstance(value, (DictConfig, ListConfig)):
            _rename(value, names)
        elif key in ("norm", "conv_norm") and isinstance(value, str):
            node[key] = names.get(value, value)


def _plain_yaml(cfg: CfgNode) -> None:
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = _YAML_NAMES.get(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.NAME)
    for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_HEADS):
        head.NAME = _YAML_NAMES.get(head.NAME, head.NAME)
    cfg.MODEL.WSBCN.STANDARDIZE = False


def _known(cfg: CfgNode, stock: CfgNode) -> CfgNode:
    """Without the keys that this project adds."""
    return CfgNode(
        {
            key: _known(value, stock[key]) if isinstance(value, CfgNode) else value
            for key, value in cfg.items()
            if key in stock
        }
    )
