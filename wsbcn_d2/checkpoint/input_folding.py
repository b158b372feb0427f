"""Weights that were trained on another input, made to take RGB with ImageNet's deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from .pretraining import Pretraining
from .sources import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["fold_input_into_stem"]


def fold_input_into_stem(tensors: dict[str, Tensor], pretraining: Pretraining) -> str:
    """Make the stem take RGB with ImageNet's deviation, in place; the features stay.

    A filter w of the stem sees (pixel - mean) / std in the order of its training. w in RGB order
    times (ImageNet's std / std) sees the same from (pixel - mean) / ImageNet's std. The mean stays,
    as the padded border has it; where it is ImageNet's but for rounding it becomes that.

    Args:
        tensors: with ``stem.conv1.weight``, shape (C, 3, h, w).
        pretraining: says what the input was, and afterwards what it is.

    Returns:
        what was done, as a line.

    Raises:
        ValueError: a standardized stem, in which a scale of each colour changes all of them.
    """
    order = -1 if pretraining.input_format == "BGR" else 1
    mean, std = pretraining.pixel_mean[::order], pretraining.pixel_std[::order]
    if pretraining.ws:
        raise ValueError(
            "weights with WS have a standardized stem, into which no input can be folded; leave "
            "fold_input out and give the model the input of these weights"
        )
    weight = tensors["stem.conv1.weight"]
    if order == -1:
        weight = weight.flip(1)
    scale = torch.tensor(IMAGENET_STD, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    folded = weight.double() * scale.view(1, 3, 1, 1)
    tensors["stem.conv1.weight"] = folded.to(weight.dtype).contiguous()
    was = f"{pretraining.input_format} of deviation {list(pretraining.pixel_std)}"
    pretraining.input_format = "RGB"
    near = all(abs(ours - x) <= 0.01 for ours, x in zip(mean, IMAGENET_MEAN, strict=True))
    pretraining.pixel_mean = IMAGENET_MEAN if near else mean
    pretraining.pixel_std = IMAGENET_STD
    return f"the stem's filters took {was}; they were folded to take RGB of ImageNet's"
