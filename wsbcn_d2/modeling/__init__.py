"""The bridge to detectron2: norm names, standardized convolutions, backbones and heads."""

from .backbones import (
    build_ws_resnet_backbone,
    build_ws_resnet_fpn_backbone,
    build_ws_retinanet_resnet_fpn_backbone,
)
from .config import add_wsbcn_config
from .inclusive_boxes import InclusiveBox2BoxTransform, InclusiveRCNN, use_inclusive_boxes
from .lazy import use_norm
from .norm_registry import (
    GroupNorm1,
    InstanceNorm2d,
    known_norms,
    norm_with,
    register_norms,
    unregister_norms,
)
from .poolers import CropPooler
from .resnetv2 import (
    BiTConv2d,
    PreActBottleneckBlock,
    PreActStem,
    build_ws_resnetv2_backbone,
    build_ws_resnetv2_fpn_backbone,
)
from .roi_heads import WSFastRCNNConvFCHead, WSMaskRCNNConvUpsampleHead, WSRes5ROIHeads
from .stems import CeilPoolStem
from .weight_standardization import WNConv2d, WSConv2d, standardize_convs, standardized

__all__ = [
    "BiTConv2d",
    "CeilPoolStem",
    "CropPooler",
    "GroupNorm1",
    "InclusiveBox2BoxTransform",
    "InclusiveRCNN",
    "InstanceNorm2d",
    "PreActBottleneckBlock",
    "PreActStem",
    "WNConv2d",
    "WSConv2d",
    "WSFastRCNNConvFCHead",
    "WSMaskRCNNConvUpsampleHead",
    "WSRes5ROIHeads",
    "add_wsbcn_config",
    "build_ws_resnet_backbone",
    "build_ws_resnet_fpn_backbone",
    "build_ws_resnetv2_backbone",
    "build_ws_resnetv2_fpn_backbone",
    "build_ws_retinanet_resnet_fpn_backbone",
    "known_norms",
    "norm_with",
    "register_norms",
    "standardize_convs",
    "standardized",
    "unregister_norms",
    "use_inclusive_boxes",
    "use_norm",
]
