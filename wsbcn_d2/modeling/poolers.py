"""Region pooling that published detectors were trained with, where detectron2 has another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor

__all__ = ["CropPooler"]


class CropPooler(ROIPooler):
    """Crops with bilinear interpolation at twice the size, then 2×2 max pooling.

    The outermost of the ``2 × output_size`` samples of a side lie on the box itself. That is what
    faster-rcnn.pytorch and TensorFlow's Faster R-CNN call crop pooling; `ROIPooler` averages inside
    of cells. Not for feature pyramids.

    Args:
        output_size: pixels of a side.
        scale: of the feature map, such as 1/16.
    """

    def __init__(self, output_size: int, scale: float) -> None:
        super().__init__(2 * output_size, [scale], sampling_ratio=1, pooler_type="ROIAlignV2")
        self.output_size = (output_size, output_size)
        self._scale = scale

    def forward(self, x: list[Tensor], box_lists: Sequence[Boxes]) -> Tensor:
        # ROIAlign samples the centers of its cells: cells around the wanted points. Its second
        # version puts a pixel's center at half of it, the crop at its index.
        cells = 2 * self.output_size[0] - 1
        grown = []
        for boxes in box_lists:
            low, high = boxes.tensor.unflatten(1, (2, 2)).unbind(1)
            half = (high - low) / (2 * cells)
            grown.append(Boxes(torch.cat((low - half, high + half), 1) + 0.5 / self._scale))
        return F.max_pool2d(super().forward(x, grown), kernel_size=2)
