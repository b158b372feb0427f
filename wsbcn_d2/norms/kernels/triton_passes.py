"""The passes as Triton kernels, for CUDA.

Where the positions of a row are split among programs, a second kernel combines their partial
results in order. No atomics, no search at run time: the same input gives the same bits.

With ``TRITON_INTERPRET=1`` in the environment before the first import of triton, the same code runs
on CPU tensors. Without triton, importing this module fails; `kernels` then uses torch.
"""

# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiling import SIZES, dense, like, on_device, place, tile

__all__ = [
    "input_gradient",
    "launch_gradient",
    "launch_moments",
    "launch_reduce",
    "moments",
    "reduce_gradient",
    "supports",
    "transform",
    "write_affine",
    "write_gradient",
]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def supports(x: Tensor) -> bool:
    """Whether the passes take ``x``: of a type up to 32 bits, not empty, (N, C, *)."""
    return x.dtype in _TYPES and x.dim() >= 3 and x.numel() > 0


# --- forward ---------------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def _moments_kernel(
    x, mean_out, var_out, row_count, running_mean, running_var, before,
    channels, length, channel_blocks, chunk_blocks, SNAPSHOT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    rows, row_mask, base, tile, step, start, end, length = place(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    # Welford's algorithm in every lane of the tile: exact whatever the mean, and no lane waits for
    # another before the end.
    mean = tl.zeros([ROWS, BLOCK], tl.float32)
    m2 = tl.zeros([ROWS, BLOCK], tl.float32)
    seen = 0.0
    columns = tl.arange(0, BLOCK)[None, :]
    for at in range(start, end, BLOCK):
        mask = (at + columns < length) & row_mask[:, None]
        there = base + tl.cast(at, tl.int64) * step + tile
        value = tl.load(x + there, mask=mask, other=0.0).to(tl.float32)
        seen += 1.0
        delta = tl.where(mask, value - mean, 0.0)
        mean += delta * (1.0 / seen)
        m2 += delta * (value - mean)
    # The law of total variance over the lanes.
    count = tl.maximum((end - start - columns + BLOCK - 1) // BLOCK, 0).to(tl.float32)
    total = (end - start).to(tl.float32)
    row_mean = tl.sum(mean * count, 1) / total
    away = mean - row_mean[:, None]
    row_var = tl.sum(m2 + count * away * away, 1) / total
    out = tl.program_id(1) * row_count + rows
    tl.store(mean_out + out, row_mean, mask=row_mask)
    tl.store(var_out + out, row_var, mask=row_mask)
    if SNAPSHOT:  # noqa: SIM102 - known when compiling, the inner one is not
        if (tl.program_id(0) < channel_blocks) & (tl.program_id(1) == 0):
            all_channels = channels * UNIT if CHANNELS_LAST else channels
            old = tl.load(running_mean + rows, mask=row_mask, other=0.0).to(tl.float32)
            tl.store(before + rows, old, mask=row_mask)
            old = tl.load(running_var + rows, mask=row_mask, other=0.0).to(tl.float32)
            tl.store(before + all_channels + rows, old, mask=row_mask)


@triton.jit(do_not_specialize=SIZES)
def _combine_kernel(
    means, variances, mean_out, var_out, row_count, length, chunk, splits, BLOCK: tl.constexpr
):
    """The moments of whole rows from those of their splits."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < row_count
    mean = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        share = tl.minimum(chunk, length - split * chunk).to(tl.float32) / length
        mean += share * tl.load(means + split * row_count + rows, mask=mask, other=0.0)
    var = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        share = tl.minimum(chunk, length - split * chunk).to(tl.float32) / length
        away = tl.load(means + split * row_count + rows, mask=mask, other=0.0) - mean
        inner = tl.load(variances + split * row_count + rows, mask=mask, other=0.0)
        var += share * (inner + away * away)
    tl.store(mean_out + rows, mean, mask=mask)
    tl.store(var_out + rows, var, mask=mask)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """`kernels.moments`."""
    both = launch_moments(dense(x))
    return both[0], both[1]


def launch_moments(
    x: Tensor, before: Tensor | None = None, running: tuple[Tensor, ...] = ()
) -> Tensor:
    """Mean and variance of the rows of a dense ``x``, ``(2, N, C)``.

    Args:
        before: ``(2, C)``, filled with the running mean and variance, which a later kernel moves.
        running: those two.
    """
    tiling = tile(x, reduces=True)
    rows, splits = x.shape[0] * x.shape[1], tiling.grid[1]
    result = x.new_empty((2, *x.shape[:2]), dtype=torch.float32)
    parts = result if splits == 1 else x.new_empty((2, splits, rows), dtype=torch.float32)
    with on_device(x.device):
        # Pointers that the kernel does not follow, without a snapshot.
        snapshot = (x, x, x) if before is None else (running[0], running[1], before)
        _moments_kernel[tiling.grid](
            x, parts[0], parts[1], rows, *snapshot, *tiling.sizes, SNAPSHOT=before is not None,
            **tiling.options,
        )  # fmt: skip
        if splits > 1:
            chunk = tiling.sizes[3] * tiling.options["BLOCK"]
            _combine_kernel[(triton.cdiv(rows, 256),)](
                parts[0], parts[1], result[0], result[1], rows, x.numel() // rows, chunk, splits,
                BLOCK=256, num_warps=4,
            )  # fmt: skip
    return result


@triton.jit
def write_affine(
    x, y, center, slope, level, base, tile, step, start, end, length, row_mask, BLOCK: tl.constexpr
):  # fmt: skip
    """``y = slope * (x - center) + level`` on a program's rows and positions; see `place`."""
    columns = tl.arange(0, BLOCK)[None, :]
    for at in range(start, end, BLOCK):
        mask = (at + columns < length) & row_mask[:, None]
        there = base + tl.cast(at, tl.int64) * step + tile
        value = tl.load(x + there, mask=mask, other=0.0).to(tl.float32)
        value = (value - center[:, None]) * slope[:, None] + level[:, None]
        tl.store(y + there, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _transform_kernel(
    x, y, mean, scale, offset,
    channels, length, channel_blocks, chunk_blocks,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    rows, row_mask, base, tile, step, start, end, length = place(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    center = tl.load(mean + rows, mask=row_mask, other=0.0)
    slope = tl.load(scale + rows, mask=row_mask, other=0.0)
    level = tl.load(offset + rows, mask=row_mask, other=0.0)
    write_affine(x, y, center, slope, level, base, tile, step, start, end, length, row_mask, BLOCK)


def transform(x: Tensor, mean: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`kernels.transform`."""
    x = dense(x)
    tiling = tile(x, reduces=False)
    y = torch.empty_like(x)
    numbers = [t.expand(x.shape[:2]).contiguous() for t in (mean, scale, offset)]
    with on_device(x.device):
        _transform_kernel[tiling.grid](x, y, *numbers, *tiling.sizes, **tiling.options)
    return y


# --- backward --------------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def _reduce_kernel(
    dy, x, mean, sum_out, dot_out, row_count,
    channels, length, channel_blocks, chunk_blocks,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    rows, row_mask, base, tile, step, start, end, length = place(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    center = tl.load(mean + rows, mask=row_mask, other=0.0)[:, None]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    dot = tl.zeros([ROWS, BLOCK], tl.float32)
    columns = tl.arange(0, BLOCK)[None, :]
    for at in range(start, end, BLOCK):
        mask = (at + columns < length) & row_mask[:, None]
        there = base + tl.cast(at, tl.int64) * step + tile
        grad = tl.load(dy + there, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + there, mask=mask, other=0.0).to(tl.float32)
        total += grad
        dot += grad * (value - center)
    out = tl.program_id(1) * row_count + rows
    tl.store(sum_out + out, tl.sum(total, 1), mask=row_mask)
    tl.store(dot_out + out, tl.sum(dot, 1), mask=row_mask)


def reduce_gradient(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """`kernels.reduce_gradient`."""
    _, _, parts, splits = launch_reduce(dy, x, mean)
    sums = parts[:, 0] if splits == 1 else parts.sum(1)
    return sums[0], sums[1]


def launch_reduce(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """``dy`` and ``x``, dense alike; `reduce_gradient` in parts ``(2, S, N, C)`` to add up; S."""
    x = dense(x)
    dy = like(dy, x)
    tiling = tile(x, reduces=True)
    rows, splits = x.shape[0] * x.shape[1], tiling.grid[1]
    parts = x.new_empty((2, splits, *x.shape[:2]), dtype=torch.float32)
    mean = mean.expand(x.shape[:2]).contiguous()
    with on_device(x.device):
        _reduce_kernel[tiling.grid](
            dy, x, mean, parts[0], parts[1], rows, *tiling.sizes, **tiling.options
        )
    return dy, x, parts, splits


@triton.jit
def write_gradient(
    dy, x, dx, center, gain, slope, level, base, tile, step, start, end, length, row_mask,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``dx = gain * dy + slope * (x - center) + level`` on a program's rows and positions."""
    columns = tl.arange(0, BLOCK)[None, :]
    for at in range(start, end, BLOCK):
        mask = (at + columns < length) & row_mask[:, None]
        there = base + tl.cast(at, tl.int64) * step + tile
        grad = tl.load(dy + there, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + there, mask=mask, other=0.0).to(tl.float32)
        away = value - center[:, None]
        result = gain[:, None] * grad + slope[:, None] * away + level[:, None]
        tl.store(dx + there, result.to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _input_gradient_kernel(
    dy, x, dx, mean, scale, dmean, dvar, slope_factor, level_factor,
    channels, length, channel_blocks, chunk_blocks,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    rows, row_mask, base, tile, step, start, end, length = place(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    center = tl.load(mean + rows, mask=row_mask, other=0.0)
    gain = tl.load(scale + rows, mask=row_mask, other=0.0)
    level = tl.load(dmean + rows, mask=row_mask, other=0.0) * level_factor
    slope = tl.load(dvar + rows, mask=row_mask, other=0.0) * slope_factor
    write_gradient(dy, x, dx, center, gain, slope, level, base, tile, step, start, end, length,
                   row_mask, BLOCK)  # fmt: skip


def input_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor, dvar: Tensor
) -> Tensor:
    """`kernels.input_gradient`, for statistics that were taken from ``x``."""
    x = dense(x)
    numbers = [t.expand(x.shape[:2]).contiguous() for t in (mean, scale, dmean, dvar)]
    return launch_gradient(_input_gradient_kernel, like(dy, x), x, numbers)


def launch_gradient(
    kernel: Any,
    dy: Tensor,
    x: Tensor,
    numbers: Sequence[Any],
    counts: Sequence[int] = (),
    **options: Any,
) -> Tensor:
    """``dx`` of dense ``dy`` and ``x``, by a kernel that ends in `write_gradient`.

    Args:
        numbers: the kernel's arguments up to the factors of slope and level.
        counts: those between the factors and the tiling's sizes.
        options: what else it is compiled for.
    """
    tiling = tile(x, reduces=False)
    dx = torch.empty_like(x)
    length = x.numel() // (x.shape[0] * x.shape[1])
    slope_factor = 2 / length if length > 1 else 0.0  # at L = 1 x is its own mean
    with on_device(x.device):
        kernel[tiling.grid](
            dy, x, dx, *numbers, slope_factor, 1 / length, *counts, *tiling.sizes, **options,
            **tiling.options,
        )  # fmt: skip
    return dx
