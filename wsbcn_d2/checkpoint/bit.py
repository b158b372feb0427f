"""BiT's pre-activation ResNets, as timm has them (``resnetv2_50x1_bit``)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["BIT", "bit_norms"]

_BLOCK = r"stages\.(?P<index>\d)\.blocks\.(?P<block>\d+)\."
# In the form of the tables in `sources`; stages count from 0.
BIT = (
    (r"stem\.conv\.weight", "stem.conv1.weight"),
    (_BLOCK + r"(?P<part>conv[123])\.weight", "res{stage}.{block}.{part}.weight"),
    (_BLOCK + r"(?P<part>norm[123])\.(?P<field>\w+)", "res{stage}.{block}.{part}.{field}"),
    (_BLOCK + r"downsample\.conv\.weight", "res{stage}.{block}.shortcut.weight"),
)


def bit_norms(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The kind of each norm, all GN, by detectron2's name.

    Raises:
        ValueError: a block lacks a convolution or a norm.
    """
    blocks = sorted({match[0] for name in tensors if (match := re.match(r"res\d\.\d+", name))})
    wanted = ["stem.conv1.weight"]
    for block in blocks:
        wanted += [f"{block}.conv{i}.weight" for i in (1, 2, 3)]
        wanted += [f"{block}.norm{i}.{field}" for i in (1, 2, 3) for field in ("weight", "bias")]
        if block.endswith(".0"):
            wanted.append(f"{block}.shortcut.weight")
    lacking = [name for name in wanted if name not in tensors]
    if lacking:
        raise ValueError(f"{len(lacking)} weights or norms are missing, such as {lacking[0]}")
    return {name[:-5]: "GN" for name in wanted if name.endswith(".bias")}
