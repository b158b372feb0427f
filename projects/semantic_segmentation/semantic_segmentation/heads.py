"""Heads that detectron2 does not have for lazy configs; their ``layers`` gives class scores.

As detectron2's ``DeepLabV3PlusHead`` has it, which `Segmentor` takes as it is.
"""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import ASPP, Conv2d, get_norm
from torch import Tensor, nn

__all__ = ["DeepLabV3Head", "FCNHead", "PSPHead"]


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: Any) -> Conv2d:
    """A convolution, a norm and ReLU."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    return conv


def _predictor(in_channels: int, num_classes: int) -> Conv2d:
    predictor = Conv2d(in_channels, num_classes, kernel_size=1)
    nn.init.normal_(predictor.weight, 0, 0.01)
    nn.init.zeros_(predictor.bias)
    return predictor


class DeepLabV3Head(nn.Module):
    """DeepLabV3's head (arXiv:1706.05587) on detectron2's ``ASPP``, which pools whole images.

    Args:
        in_channels: of the feature.
        in_feature: its name.
        channels: of each branch.
        dilations: of the three 3x3 branches.
        num_classes: of the prediction.
        norm: as in ``get_norm``.
        dropout: before the predictor.
        pool_norm: give the branch of the pooled image a norm too, as the releases with GN + WS and
            BCN + WS do. Not with SN, whose IN does not exist on 1x1 maps (arXiv:1907.10473, Table
            XI), nor with batch statistics of one image.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        in_feature: str = "res5",
        channels: int = 256,
        dilations: tuple[int, ...] = (6, 12, 18),
        num_classes: int,
        norm: Any,
        dropout: float = 0.1,
        pool_norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_feature = in_feature
        self.num_classes = num_classes
        self.aspp = ASPP(
            in_channels, channels, list(dilations), norm=norm, activation=F.relu, dropout=dropout
        )
        if pool_norm:
            self.aspp.convs[-1][1] = _conv(in_channels, channels, 1, norm)
        self.predictor = _predictor(channels, num_classes)

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Class scores (N, num_classes, h, w) of the backbone's features."""
        scores: Tensor = self.predictor(self.aspp(features[self.in_feature]))
        return scores


class PSPHead(nn.Module):
    """PSPNet's head (arXiv:1612.01105): the feature beside its averages over grids.

    The average over the whole image has no norm, for the reason in `DeepLabV3Head`.

    Args:
        in_channels: of the feature.
        in_feature: its name.
        channels: of the fused feature.
        grids: cells a side of each grid.
        num_classes: of the prediction.
        norm: as in ``get_norm``.
        dropout: before the predictor.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        in_feature: str = "res5",
        channels: int = 512,
        grids: tuple[int, ...] = (1, 2, 3, 6),
        num_classes: int,
        norm: Any,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_feature = in_feature
        self.num_classes = num_classes
        self.grids = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(grid),
                _conv(in_channels, channels, 1, norm if grid > 1 else ""),
            )
            for grid in grids
        )
        self.fuse = _conv(in_channels + len(grids) * channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = _predictor(channels, num_classes)

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Class scores (N, num_classes, h, w) of the backbone's features."""
        x = features[self.in_feature]
        pooled = [
            F.interpolate(grid(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
            for grid in self.grids
        ]
        scores: Tensor = self.predictor(self.dropout(self.fuse(torch.cat([x, *pooled], dim=1))))
        return scores


class FCNHead(nn.Module):
    """A 3x3 convolution and a predictor: the auxiliary head on an earlier feature.

    Args:
        in_channels: of the feature.
        in_feature: its name.
        channels: of the convolution.
        num_classes: of the prediction.
        norm: as in ``get_norm``.
        dropout: before the predictor.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        in_feature: str = "res4",
        channels: int = 256,
        num_classes: int,
        norm: Any,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_feature = in_feature
        self.num_classes = num_classes
        self.conv = _conv(in_channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = _predictor(channels, num_classes)

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Class scores (N, num_classes, h, w) of the backbone's features."""
        scores: Tensor = self.predictor(self.dropout(self.conv(features[self.in_feature])))
        return scores
