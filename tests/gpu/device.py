"""The device of tests/gpu: a GPU where there is one; elsewhere the CPU, with small shapes.

`make test-gpu` runs these on a GPU; `make test` and `make test-gpu DEVICE=cpu` run them small,
so that they are known to work before they meet a GPU.
"""

from __future__ import annotations

import torch

__all__ = ["DEVICE", "SHAPES"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# What a Mask R-CNN R-50-FPN normalizes in a training step: res2 to res5 (a block's width and its
# output) and p2 at one and two images of 800 x 1216, the box head at 512 boxes an image, the mask
# head at 128.
_STEP = [
    *[(n, c, h, w) for n in (1, 2) for c, h, w in (
        (64, 200, 304), (256, 200, 304), (128, 100, 152), (512, 100, 152),
        (256, 50, 76), (1024, 50, 76), (512, 25, 38), (2048, 25, 38),
    )],
    *((512, 256, 7, 7), (1024, 256, 7, 7), (128, 256, 14, 14), (256, 256, 14, 14)),
]  # fmt: skip
SHAPES = _STEP if DEVICE.type == "cuda" else [(1, 64, 6, 10), (2, 96, 5, 7), (8, 64, 3, 3)]
