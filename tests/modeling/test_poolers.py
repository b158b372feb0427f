"""CropPooler against the crop of faster-rcnn.pytorch: an affine grid, sampled at its corners."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes

from wsbcn_d2.modeling import CropPooler


def crop(features, boxes, size):
    """7x7 by 14x14: the released arithmetic, with a grid from -1 to 1 between the box's edges."""
    height, width = (side - 1 for side in features.shape[2:])
    x1, y1, x2, y2 = (boxes / 16).unbind(1)
    theta = features.new_zeros(len(boxes), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = (x2 - x1) / width, (x1 + x2 - width) / width
    theta[:, 1, 1], theta[:, 1, 2] = (y2 - y1) / height, (y1 + y2 - height) / height
    shape = (len(boxes), features.shape[1], 2 * size, 2 * size)
    grid = F.affine_grid(theta, shape, align_corners=True)
    sampled = F.grid_sample(features.expand(len(boxes), -1, -1, -1), grid, align_corners=True)
    return F.max_pool2d(sampled, 2)


@pytest.mark.parametrize("size", [7, 3])
def test_it_is_the_released_crop(size):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 12, 20, generator=generator, dtype=torch.float64)
    corners = torch.rand(9, 2, 2, generator=generator, dtype=torch.float64).sort(1).values
    corners[0, 1] = corners[0, 0] + 1e-3  # smaller than a cell
    boxes = (corners * torch.tensor([19.0, 11.0]) * 16).flatten(1)
    pooled = CropPooler(size, 1 / 16)([features], [Boxes(boxes)])
    # Boxes are float32 in detectron2: 300 pixels to 2e-5, times the slope of the features.
    torch.testing.assert_close(pooled, crop(features, boxes, size), rtol=0, atol=1e-4)


def test_it_takes_no_boxes():
    pooler = CropPooler(7, 1 / 16)
    assert pooler([torch.zeros(1, 4, 8, 8)], [Boxes(torch.zeros(0, 4))]).shape == (0, 4, 7, 7)
    assert pooler.output_size == (7, 7)
