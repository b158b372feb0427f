"""Weights that were trained on another input, made to take RGB with ImageNet's deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from .pretraining import IMAGENET_MEAN, IMAGENET_STD, Pretraining

__all__ = ["fold_input_into_stem"]


def fold_input_into_stem(tensors: dict[str, Tensor], pretraining: Pretraining) -> str:
    """Make the stem take RGB with ImageNet's mean and deviation, in place; the features stay.

    A filter w of the stem sees (pixel - mean) / std in the order of its training. With the mean
    equal colour by colour, w in RGB order times (ImageNet's std / std) sees the same from
    (pixel - mean) / ImageNet's std, at the padded border too.

    Args:
        tensors: with ``stem.conv1.weight``, shape (C, 3, h, w).
        pretraining: says what the input was, and afterwards what it is.

    Returns:
        what was done, as a line.

    Raises:
        ValueError: another mean (the border would differ), or a standardized stem, in which a
            scale of each colour changes all of them.
    """
    order = -1 if pretraining.input_format == "BGR" else 1
    mean, std = pretraining.pixel_mean[::order], pretraining.pixel_std[::order]
    if any(abs(ours - theirs) > 0.01 for ours, theirs in zip(mean, IMAGENET_MEAN, strict=True)):
        raise ValueError(
            f"pixel_mean is {list(pretraining.pixel_mean)} ({pretraining.input_format}): only "
            f"ImageNet's, {list(IMAGENET_MEAN)} in RGB, can be folded; leave fold_input out and "
            "give the model this input"
        )
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
    pretraining.pixel_mean, pretraining.pixel_std = IMAGENET_MEAN, IMAGENET_STD
    return f"the stem's filters took {was}; they were folded to take RGB of ImageNet's"
