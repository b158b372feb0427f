"""Class probabilities of a whole image: several scales, mirrored, in overlapping windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["predict", "window_starts"]

Scores = Callable[[Tensor], Tensor]


def predict(
    scores: Scores,
    image: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: int = 0,
) -> Tensor:
    """Mean of the class probabilities over scales and flips, at the size of the image.

    Args:
        scores: from images (N, 3, h, w) to class scores (N, C, h, w).
        image: (1, 3, H, W).
        scales: that the image is resized by.
        flip: whether each is looked at mirrored too.
        window: side of the windows that a larger image is looked at in; 0 for whole images.

    Returns:
        (C, H, W), which sums to 1 over C.
    """
    size = image.shape[-2:]
    total = torch.zeros((), device=image.device)
    for scale in scales:
        resized = image if scale == 1 else _resize(image, [round(s * scale) for s in size])
        probabilities = _over_windows(scores, resized, window)
        if flip:
            mirrored = _over_windows(scores, resized.flip(-1), window)
            probabilities = (probabilities + mirrored.flip(-1)) / 2
        total = total + _resize(probabilities, size) / len(scales)
    return total[0]


def window_starts(length: int, window: int) -> list[int]:
    """Where windows start that cover ``length`` pixels and overlap by a third or more."""
    if not 0 < window < length:
        return [0]
    count = -(-(length - window) * 3 // (2 * window)) + 1
    return [i * (length - window) // (count - 1) for i in range(count)]


def _over_windows(scores: Scores, image: Tensor, window: int) -> Tensor:
    height, width = image.shape[-2:]
    tops, lefts = window_starts(height, window), window_starts(width, window)
    if len(tops) == len(lefts) == 1:
        return scores(image).float().softmax(dim=1)
    total = count = None
    for top in tops:
        for left in lefts:
            part = (..., slice(top, top + window), slice(left, left + window))
            probabilities = scores(image[part]).float().softmax(dim=1)
            if total is None or count is None:
                total = probabilities.new_zeros(1, probabilities.shape[1], height, width)
                count = probabilities.new_zeros(1, 1, height, width)
            total[part] += probabilities
            count[part] += 1
    assert total is not None and count is not None
    return total / count


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
