"""Weight standardization as Triton kernels, for CUDA: one launch each way."""

# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiling import SIZES, dense, like, on_device

__all__ = ["standardize", "standardize_backward", "supports"]


def supports(weight: Tensor) -> bool:
    """Whether the kernels take a weight: of a type up to 32 bits, not empty."""
    return weight.dtype in (torch.float32, torch.bfloat16, torch.float16) and weight.numel() > 0


@triton.jit(do_not_specialize=SIZES)
def _standardize_kernel(
    weight, out, denominators, roots, fan_in, eps,
    INSIDE: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    fan_in = fan_in * UNIT
    base = tl.program_id(0).to(tl.int64) * fan_in
    columns = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(0, fan_in, BLOCK):
        mask = at + columns < fan_in
        total += tl.load(weight + base + at + columns, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / fan_in
    # A filter is a few kilobytes: the second and third reads come from the cache.
    squares = tl.zeros([BLOCK], tl.float32)
    for at in range(0, fan_in, BLOCK):
        mask = at + columns < fan_in
        value = tl.load(weight + base + at + columns, mask=mask, other=0.0).to(tl.float32)
        away = tl.where(mask, value - mean, 0.0)
        squares += away * away
    var = tl.sum(squares, 0) / (fan_in - 1)
    if INSIDE:
        root = tl.sqrt_rn(var + eps)
        denominator = root
    else:
        # The root of 0 has no finite slope: a constant filter passes none.
        root = tl.sqrt_rn(tl.where(var > 0, var, 1.0))
        denominator = tl.where(var > 0, root, 0.0) + eps
    tl.store(denominators + tl.program_id(0), denominator)
    tl.store(roots + tl.program_id(0), root)
    for at in range(0, fan_in, BLOCK):
        mask = at + columns < fan_in
        value = tl.load(weight + base + at + columns, mask=mask, other=0.0).to(tl.float32)
        value = (value - mean) / denominator
        tl.store(out + base + at + columns, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _standardize_backward_kernel(
    grad, hat, dweight, denominators, roots, fan_in, BLOCK: tl.constexpr, UNIT: tl.constexpr
):
    fan_in = fan_in * UNIT
    base = tl.program_id(0).to(tl.int64) * fan_in
    columns = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    dot = tl.zeros([BLOCK], tl.float32)
    for at in range(0, fan_in, BLOCK):
        mask = at + columns < fan_in
        g = tl.load(grad + base + at + columns, mask=mask, other=0.0).to(tl.float32)
        total += g
        dot += g * tl.load(hat + base + at + columns, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / fan_in
    along = tl.sum(dot, 0) / ((fan_in - 1) * tl.load(roots + tl.program_id(0)))
    denominator = tl.load(denominators + tl.program_id(0))
    for at in range(0, fan_in, BLOCK):
        mask = at + columns < fan_in
        g = tl.load(grad + base + at + columns, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(hat + base + at + columns, mask=mask, other=0.0).to(tl.float32)
        result = (g - mean) / denominator - value * along
        tl.store(dweight + base + at + columns, result.to(dweight.dtype.element_ty), mask=mask)


def _filter_options(weight: Tensor) -> tuple[int, dict[str, Any]]:
    """The fan-in in units, and what to compile for."""
    fan_in = weight.numel() // weight.shape[0]
    unit = next(u for u in (16, 4, 1) if fan_in % u == 0)
    block = 256 if fan_in <= 256 else 1024
    return fan_in // unit, {"BLOCK": block, "UNIT": unit, "num_warps": block // 256 * 2}


def standardize(weight: Tensor, eps: float, inside: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The standardized weight, what divided it and the root in it, ``(O, 1)`` each.

    The positions of a filter may lie in any order, so long as filters lie one behind another: in
    contiguous and in channels_last weights they do.
    """
    weight = dense(weight)
    out = torch.empty_like(weight)
    numbers = weight.new_empty((2, weight.shape[0], 1), dtype=torch.float32)
    fan_in, options = _filter_options(weight)
    with on_device(weight.device):
        _standardize_kernel[(weight.shape[0],)](
            weight, out, numbers[0], numbers[1], fan_in, eps, INSIDE=inside, **options
        )
    return out, numbers[0], numbers[1]


def standardize_backward(grad: Tensor, hat: Tensor, denominator: Tensor, root: Tensor) -> Tensor:
    """The weight's gradient from that of the standardized weight ``hat``."""
    hat = dense(hat)
    grad = like(grad, hat)
    dweight = torch.empty_like(hat)
    fan_in, options = _filter_options(hat)
    with on_device(hat.device):
        _standardize_backward_kernel[(hat.shape[0],)](
            grad, hat, dweight, denominator, root, fan_in, **options
        )
    return dweight
