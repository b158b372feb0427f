"""Choosing norms in detectron2's lazy configs."""

from __future__ import annotations

from typing import Any

from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, ListConfig, OmegaConf

from .weight_standardization import standardized

__all__ = ["use_norm"]

# What detectron2's classes call their norm.
_NORM_KEYS = ("norm", "conv_norm")
# Those whose norm has a default, so that a config may leave it out and get another one unnoticed.
_DEFAULTED = {
    "BasicStem": "norm",
    "make_default_stages": "norm",
    "make_stage": "norm",
    "FPN": "norm",
    "FastRCNNConvFCHead": "conv_norm",
    "MaskRCNNConvUpsampleHead": "conv_norm",
    "RetinaNetHead": "norm",
    "FCOSHead": "norm",
    "SemSegFPNHead": "norm",
}
_HEADS = ("roi_heads", "head", "sem_seg_head", "auxiliary_head")


def use_norm(
    model: DictConfig, backbone: Any, head: Any = None, *, standardize: bool = False
) -> DictConfig:
    """Set the norms of a lazily configured detector, in place.

    Args:
        model: a config as those in detectron2's ``common/models``: R-CNN (FPN, C4, cascade,
            keypoints), RetinaNet, FCOS, Panoptic FPN.
        backbone: norm of the bottom-up network: a name or a callable, see `register_norms`.
        head: norm of FPN and of all heads that can have one (box, mask, semantic, RetinaNet's and
            FCOS'), or of a C4 model's res5; "" for none. None: as the backbone.
        standardize: whether to standardize every convolution that a norm follows. False leaves a
            model that is standardized already as it is.

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
    for key in _HEADS:
        if key in model:
            _set(model[key], head)
    if standardize and _path(model._target_) != _path(standardized):
        model.module_class = _path(model._target_)
        model._target_ = standardized
    return model


def _path(target: Any) -> str:
    # A config that was saved and loaded has paths already.
    return target if isinstance(target, str) else _convert_target_to_string(target)


def _set(node: Any, norm: Any) -> None:
    if isinstance(node, ListConfig):
        for item in node:
            _set(item, norm)
    if not isinstance(node, DictConfig):
        return
    target = node.get("_target_")
    default = None if target is None else _DEFAULTED.get(_path(target).rpartition(".")[2])
    if default is not None:
        node[default] = norm
    for key in list(node):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        if key in _NORM_KEYS:
            node[key] = norm
        else:
            _set(node[key], norm)
