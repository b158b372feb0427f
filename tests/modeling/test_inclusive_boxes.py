"""Detectron's boxes and anchors, against its published ones."""

from __future__ import annotations

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from wsbcn_d2.modeling.inclusive_boxes import InclusiveBox2BoxTransform, use_inclusive_boxes

# The table in the head of Detectron's generate_anchors.py: stride 16, sizes 128, 256 and 512; for
# each ratio 0.5, 1 and 2 (height / width), inclusive, and counted from 1.
PUBLISHED = [
    [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
    [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
    [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
]  # fmt: skip


def proposals(sizes, strides):
    """What of an RPN matters."""
    module = nn.Module()
    ratios = [[0.5, 1.0, 2.0]]
    module.anchor_generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=ratios, strides=strides
    )
    module.box2box_transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    return module


def test_anchors_are_detectrons():
    model = use_inclusive_boxes(proposals([[128, 256, 512]], [16]))
    (found,) = model.anchor_generator.cell_anchors
    by_ratio = found.view(3, 3, 4).transpose(0, 1).reshape(9, 4)
    assert (by_ratio + 1).tolist() == PUBLISHED
    (again,) = use_inclusive_boxes(model).anchor_generator.cell_anchors
    assert torch.equal(found, again)


def test_anchors_of_each_level_are_rounded_at_its_stride():
    strides = [4, 8, 16, 32, 64]
    model = use_inclusive_boxes(proposals([[8 * s] for s in strides], strides))
    for cell, stride in zip(model.anchor_generator.cell_anchors, strides, strict=True):
        for box, ratio in zip(cell.tolist(), (0.5, 1.0, 2.0), strict=True):
            width = round((stride * stride / ratio) ** 0.5)
            size = [8 * width, 8 * round(width * ratio)]
            assert [box[2] - box[0] + 1, box[3] - box[1] + 1] == size
            assert [box[0] + box[2], box[1] + box[3]] == [stride - 1, stride - 1]


def test_a_box_is_a_pixel_wider_than_its_corners_are_apart():
    generator = torch.Generator().manual_seed(0)
    corner, size = (torch.rand(20, 2, generator=generator) for _ in range(2))
    boxes = torch.cat([100 * corner, 100 * corner + 60 * size], 1).double()
    deltas = 0.3 * torch.randn(20, 8, generator=generator).double()
    transform = InclusiveBox2BoxTransform((10.0, 10.0, 5.0, 5.0))
    moved = transform.apply_deltas(deltas, boxes)  # in float32
    for k in (0, 4):  # two classes
        d = deltas[:, k : k + 4] / torch.tensor([10, 10, 5, 5])
        width, height = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
        x, y = boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height
        x, y = x + d[:, 0] * width, y + d[:, 1] * height
        width, height = width * d[:, 2].exp(), height * d[:, 3].exp()
        expected = [x - width / 2, y - height / 2, x + width / 2 - 1, y + height / 2 - 1]
        assert torch.allclose(moved[:, k : k + 4], torch.stack(expected, 1).float(), atol=1e-4)
        back = transform.get_deltas(boxes, torch.stack(expected, 1))
        assert torch.allclose(back, deltas[:, k : k + 4])
