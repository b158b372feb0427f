"""Scales, flips and windows against loops over pixels, and properties that follow."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from projects.semantic_segmentation.semantic_segmentation.inference import predict, window_starts


def pointwise(images):
    """Scores that depend on the pixel only."""
    return torch.stack([images[:, 0], -images[:, 1], images[:, 2] * images[:, 0]], dim=1) * 3


def wide(images):
    """Scores that depend on the pixels around, and on the side they are on."""
    weight = torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return F.conv2d(images, weight, padding=2)


@pytest.fixture
def image():
    return torch.rand(1, 3, 41, 57, generator=torch.Generator().manual_seed(0))


def test_windows_cover_all_and_overlap_by_a_third():
    for length in range(1, 400):
        for window in (7, 30, 64):
            starts = window_starts(length, window)
            assert starts[0] == 0 and starts == sorted(set(starts))
            if length <= window:
                assert starts == [0]
                continue
            assert starts[-1] + window == length
            # The next window starts where two thirds of the last are over, or a pixel later.
            assert all(b - a <= 2 * window / 3 + 1 for a, b in itertools.pairwise(starts))


def test_windows_of_a_pointwise_network_are_the_whole_image(image):
    expected = predict(pointwise, image)
    for window in (16, 30, 41, 57, 100):
        assert torch.allclose(predict(pointwise, image, window=window), expected, atol=1e-6)


def test_windows_are_averaged_where_they_overlap(image):
    window = 24
    total, count = torch.zeros(3, 41, 57), torch.zeros(41, 57)
    for top in window_starts(41, window):
        for left in window_starts(57, window):
            part = image[:, :, top : top + window, left : left + window]
            place = (..., slice(top, top + window), slice(left, left + window))
            total[place] += wide(part).softmax(1)[0]
            count[place] += 1
    assert torch.allclose(predict(wide, image, window=window), total / count, atol=1e-6)


def test_flips_make_the_prediction_of_a_mirrored_image_the_mirrored_one(image):
    ours = predict(wide, image, flip=True)
    mirrored = predict(wide, image.flip(-1), flip=True)
    assert torch.allclose(mirrored, ours.flip(-1), atol=1e-6)
    assert not torch.allclose(predict(wide, image.flip(-1)), predict(wide, image).flip(-1))


def test_scales_are_averaged_at_the_size_of_the_image(image):
    each = []
    for scale in (0.5, 1.0, 1.75):
        size = round(41 * scale), round(57 * scale)
        resized = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        probabilities = wide(resized).softmax(1)
        each.append(F.interpolate(probabilities, size=(41, 57), mode="bilinear")[0])
    found = predict(wide, image, scales=(0.5, 1.0, 1.75))
    assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-6)
    assert torch.allclose(found.sum(0), torch.ones(41, 57), atol=1e-5)
