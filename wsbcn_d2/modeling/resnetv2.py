"""BiT's backbone: a ResNet whose norms stand before its convolutions, which are standardized.

Reference: A. Kolesnikov et al., "Big Transfer (BiT): General Visual Representation Learning",
arXiv:1912.11370; K. He et al., "Identity Mappings in Deep Residual Networks", arXiv:1603.05027. The
parameters and the arithmetic are those of timm's ``resnetv2_50x1_bit`` and its wider kin.
"""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import CNNBlockBase
from torch import Tensor, nn

from .. import norms
from .config import ws_options
from .weight_standardization import standardize_convs

__all__ = [
    "BiTConv2d",
    "PreActBottleneckBlock",
    "PreActStem",
    "build_ws_resnetv2_backbone",
    "build_ws_resnetv2_fpn_backbone",
]

_EPS = 1e-8
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class BiTConv2d(norms.WSConv2d):
    r"""A convolution standardized as BiT does, by the biased variance: divisor K, not K - 1.

    .. math:: \hat w = \frac{w - mean(w)}{\sqrt{var(w) + 10^{-8}}}

    The norm after a convolution hides the difference elsewhere; here none follows the last
    convolution of a block. Has no bias; takes torch's arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, bias=False, **kwargs)
        count = self.weight[0].numel()
        # var of divisor K is (K - 1) / K times that of divisor K - 1.
        self.gain = (count / (count - 1)) ** 0.5
        self.eps, self.eps_mode = _EPS * count / (count - 1), "inside"
        weight_init.c2_msra_fill(self)

    def standardized_weight(self) -> Tensor:
        return super().standardized_weight() * self.gain


class PreActStem(CNNBlockBase):
    """A convolution without a norm, and a max pooling whose border is zeros."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64) -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = BiTConv2d(in_channels, out_channels, 7, stride=2, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(self.conv1(x), (1, 1, 1, 1)), kernel_size=3, stride=2)


class PreActBottleneckBlock(CNNBlockBase):
    """A bottleneck with its norms in front: x + conv3(norm3(conv2(norm2(conv1(norm1(x))))).

    A ReLU follows each norm. The shortcut, where there is one, starts after the first. For
    ``ResNet.make_stage``; the stride is in the 3x3 convolution.

    Args:
        in_channels, out_channels, bottleneck_channels: widths.
        stride: of the block.
        norm: as ``get_norm`` takes it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        norm: Any = "GN",
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        width = bottleneck_channels
        # Not beside the convolutions: `standardize_convs` would give those before a norm its eps.
        self.norm1, self.norm2 = get_norm(norm, in_channels), get_norm(norm, width)
        self.norm3 = get_norm(norm, width)
        self.conv1 = BiTConv2d(in_channels, width, 1)
        self.conv2 = BiTConv2d(width, width, 3, stride=stride, padding=1)
        self.conv3 = BiTConv2d(width, out_channels, 1)
        self.shortcut: nn.Module | None = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = BiTConv2d(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm1(x).relu_()
        shortcut = x if self.shortcut is None else self.shortcut(first)
        out = self.norm2(self.conv1(first)).relu_()
        out = self.norm3(self.conv2(out)).relu_()
        return self.conv3(out) + shortcut


@BACKBONE_REGISTRY.register()
def build_ws_resnetv2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """BiT's ResNet, by detectron2's keys: ``MODEL.RESNETS.DEPTH`` 50, 101 or 152, ``NORM``.

    A wider one ("x3") has ``STEM_OUT_CHANNELS``, ``WIDTH_PER_GROUP`` and ``RES2_OUT_CHANNELS`` that
    many times as large. The outputs are the sums after each stage, without the network's last norm.

    Raises:
        ValueError: another depth.
    """
    options = cfg.MODEL.RESNETS
    if options.DEPTH not in _BLOCKS:
        raise ValueError(f"MODEL.RESNETS.DEPTH ({options.DEPTH}) must be one of {list(_BLOCKS)}")
    stages, channels = [], options.STEM_OUT_CHANNELS
    for i, blocks in enumerate(_BLOCKS[options.DEPTH]):
        out_channels = options.RES2_OUT_CHANNELS * 2**i
        stages.append(
            ResNet.make_stage(
                PreActBottleneckBlock,
                blocks,
                stride_per_block=[1 if i == 0 else 2] + [1] * (blocks - 1),
                in_channels=channels,
                out_channels=out_channels,
                bottleneck_channels=options.WIDTH_PER_GROUP * 2**i,
                norm=options.NORM,
            )
        )
        channels = out_channels
    stem = PreActStem(input_shape.channels, options.STEM_OUT_CHANNELS)
    return ResNet(
        stem,
        stages,
        out_features=options.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_ws_resnetv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """`build_ws_resnetv2_backbone` with FPN.

    FPN's own convolutions are standardized as everywhere here where ``MODEL.FPN.NORM`` gives them
    a norm, which the sums of pre-activation blocks need.
    """
    fpn = FPN(
        bottom_up=build_ws_resnetv2_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    return standardize_convs(fpn, **ws_options(cfg))
