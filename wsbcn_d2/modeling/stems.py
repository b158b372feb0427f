"""Stems that published weights were trained with, where detectron2's differs."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.modeling.backbone import BasicStem
from torch import Tensor

__all__ = ["CeilPoolStem"]


class CeilPoolStem(BasicStem):
    """detectron2's ``BasicStem`` with max pooling that rounds the size up in the place of padding.

    The windows lie one pixel further down and right. Caffe pools so, and so does Sparse_SwitchNorm,
    whose published weights give the published features with this stem only. Takes BasicStem's
    arguments and has its parameters.

    Not for weights of another origin: detectron2's and torchvision's stems pad.
    """

    stem_pool = "ceil"

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
