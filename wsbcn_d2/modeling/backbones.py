"""ResNet and ResNeXt backbones with weight standardization, in detectron2's backbone registry."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import (
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)

from .config import ws_options
from .weight_standardization import standardize_convs

__all__ = [
    "build_ws_resnet_backbone",
    "build_ws_resnet_fpn_backbone",
    "build_ws_retinanet_resnet_fpn_backbone",
]


@BACKBONE_REGISTRY.register()
def build_ws_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """detectron2's ``build_resnet_backbone`` (ResNet, ResNeXt; C4 too), standardized."""
    return standardize_convs(build_resnet_backbone(cfg, input_shape), **ws_options(cfg))


@BACKBONE_REGISTRY.register()
def build_ws_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """detectron2's ``build_resnet_fpn_backbone``, standardized.

    FPN's own convolutions are standardized where ``MODEL.FPN.NORM`` gives them a norm.
    """
    return standardize_convs(build_resnet_fpn_backbone(cfg, input_shape), **ws_options(cfg))


@BACKBONE_REGISTRY.register()
def build_ws_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """detectron2's ``build_retinanet_resnet_fpn_backbone`` (P3 to P7), standardized."""
    backbone = build_retinanet_resnet_fpn_backbone(cfg, input_shape)
    return standardize_convs(backbone, **ws_options(cfg))
