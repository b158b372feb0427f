"""Boxes whose last pixel is a part of them, as Detectron and its descendants have them.

Reference: ``lib/utils/boxes.py`` and ``lib/modeling/generate_anchors.py`` of Detectron.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import BufferList, DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor, nn

__all__ = ["InclusiveBox2BoxTransform", "InclusiveRCNN", "use_inclusive_boxes"]

M = TypeVar("M", bound=nn.Module)


class InclusiveBox2BoxTransform(Box2BoxTransform):
    """detectron2's ``Box2BoxTransform`` where a box is x2 - x1 + 1 wide."""

    boxes = "inclusive"

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        one = src_boxes.new_tensor([0, 0, 1, 1])
        return super().get_deltas(src_boxes + one, target_boxes + one)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        one = boxes.new_tensor([0, 0, 1, 1])
        moved = super().apply_deltas(deltas, boxes + one)
        return moved - one.to(moved).repeat(moved.shape[1] // 4)


class InclusiveRCNN(GeneralizedRCNN):
    """detectron2's ``GeneralizedRCNN``; its final boxes end behind their last pixel, as in COCO."""

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: Any = None,
        do_postprocess: bool = True,
    ) -> Any:
        results = super().inference(batched_inputs, detected_instances, do_postprocess)
        if do_postprocess:
            for result in results:
                found = result["instances"]
                boxes = found.pred_boxes.tensor
                found.pred_boxes = Boxes(boxes + boxes.new_tensor([0, 0, 1, 1]))
                found.pred_boxes.clip(found.image_size)
        return results


def use_inclusive_boxes(model: M) -> M:
    """Make a built Faster or Mask R-CNN evaluate as Detectron does, in place.

    Anchors are rounded as Detectron rounds them, and widths are x2 - x1 + 1 in proposals, box
    deltas and results. Clipping at the border and NMS stay detectron2's, which differ by a part of
    a pixel. Doing it twice is doing it once. Not for training a new model.

    Args:
        model: with a ``GeneralizedRCNN``'s parts.

    Returns:
        ``model``.
    """
    if type(model) is GeneralizedRCNN:
        model.__class__ = InclusiveRCNN
    for module in model.modules():
        transform = getattr(module, "box2box_transform", None)
        if type(transform) is Box2BoxTransform:
            transform.__class__ = InclusiveBox2BoxTransform
            if isinstance(getattr(module, "anchor_generator", None), DefaultAnchorGenerator):
                _round_anchors(module.anchor_generator)
    return model


def _round_anchors(generator: DefaultAnchorGenerator) -> None:
    cells = []
    for cell, stride in zip(generator.cell_anchors, generator.strides, strict=True):
        width, height = (cell[:, 2] - cell[:, 0]).double(), (cell[:, 3] - cell[:, 1]).double()
        # The stride's own square is reshaped and rounded, then enlarged. Ratio and scale without
        # their float32 error, which could round the other way.
        scale = ((width * height).sqrt() / stride).round(decimals=4)
        ratio = (height / width).round(decimals=4)
        width = (stride / ratio.sqrt()).round()
        height = (width * ratio).round() * scale
        half = torch.stack([width * scale - 1, height - 1], 1) / 2
        middle = (stride - 1) / 2
        cells.append(torch.cat([middle - half, middle + half], 1).to(cell))
    generator.cell_anchors = BufferList(cells)
