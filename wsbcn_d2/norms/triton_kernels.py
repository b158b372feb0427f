"""The passes of `passes` and weight standardization as Triton kernels, for CUDA.

A program works on a tile of ``ROWS`` channels of one sample by ``BLOCK`` positions, and walks along
the positions; where there are fewer rows than the chip has room for, as at one or two images, the
positions are split among programs, whose partial results a second kernel combines in order. No
atomics, no search at run time: the same input gives the same bits.

Image sizes change with every step of a detector, so no kernel is compiled for one: sizes are
ordinary arguments, and what is compiled for is the tile (four choices of it by the length of a row,
two memory formats), how many elements of a row can be loaded at once, and the type.

With ``TRITON_INTERPRET=1`` in the environment before the first import of triton, the same code runs
on CPU tensors. Without triton, importing this module fails; `passes` then uses torch.
"""

# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "input_gradient",
    "moments",
    "reduce_gradient",
    "standardize",
    "standardize_backward",
    "supports",
    "takes_weight",
    "transform",
]

# Elements of a tile and its warps: 16 a thread, which is four 16-byte loads of float32 in flight.
_TILE = 4096
_WARPS = 8
# Programs a multiprocessor should get, for the kernels that reduce.
_PROGRAMS = 8
_TYPES = (torch.float32, torch.bfloat16, torch.float16)

# Arguments that differ from image to image. Triton would compile for each that is 1 or divisible by
# 16, and anew when that changes.
_SIZES = [
    *("channels", "length", "channel_blocks", "chunk_blocks", "row_count", "splits", "fan_in"),
    *("chunk",),
]


# --- tiles -----------------------------------------------------------------------------------


class _Tiling(NamedTuple):
    grid: tuple[int, int]
    sizes: tuple[int, int, int, int]  # channels, length (the fast one in units), blocks, chunk
    options: dict[str, Any]


@functools.lru_cache(maxsize=4096)
def _tiling(
    shape: tuple[int, int, int], channels_last: bool, programs: int, reduces: bool
) -> _Tiling:
    """How to cut (N, C, L) into programs; ``programs`` is how many the chip wants."""
    samples, channels, length = shape
    if channels_last:
        rows = min(max(triton.next_power_of_2(channels), 16), 64)
        block = _TILE // rows
        fast = channels
    else:
        # The next tile from 64, 256, 1024 and 4096 positions.
        block = next(b for b in (64, 256, 1024, _TILE) if b >= min(length, _TILE))
        rows = _TILE // block
        fast = length
    unit = next(u for u in (16, 4, 2, 1) if fast % u == 0)
    channel_blocks = triton.cdiv(channels, rows)
    blocks = triton.cdiv(length, block)
    if reduces:
        splits = min(max(programs // (samples * channel_blocks), 1), blocks)
        chunk_blocks = triton.cdiv(blocks, splits)
    else:
        chunk_blocks = min(blocks, 4)
    grid = samples * channel_blocks, triton.cdiv(blocks, chunk_blocks)
    sizes = (
        channels // unit if channels_last else channels,
        length if channels_last else length // unit,
        channel_blocks,
        chunk_blocks,
    )
    options = {
        "CHANNELS_LAST": channels_last,
        "ROWS": rows,
        "BLOCK": block,
        "UNIT": unit,
        "num_warps": _WARPS,
    }
    return _Tiling(grid, sizes, options)


@functools.lru_cache(maxsize=64)
def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return _PROGRAMS  # the interpreter
    return _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


def _tile(x: Tensor, reduces: bool) -> _Tiling:
    shape = x.shape[0], x.shape[1], x.numel() // (x.shape[0] * x.shape[1])
    return _tiling(shape, not x.is_contiguous(), _programs(x.device), reduces)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def supports(x: Tensor) -> bool:
    """Whether the passes take ``x``: of a type up to 32 bits, not empty, (N, C, *)."""
    return x.dtype in _TYPES and x.dim() >= 3 and x.numel() > 0


def takes_weight(weight: Tensor) -> bool:
    """Whether `standardize` takes a weight: of a type up to 32 bits, not empty."""
    return weight.dtype in _TYPES and weight.numel() > 0


def _dense(x: Tensor) -> Tensor:
    """``x`` itself if contiguous or channels_last, else a contiguous copy."""
    return x if x.is_contiguous() or x.is_contiguous(memory_format=_last(x)) else x.contiguous()


def _like(dy: Tensor, x: Tensor) -> Tensor:
    """``dy`` in the memory format of the dense ``x``."""
    return dy.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else _last(x))


def _last(x: Tensor) -> torch.memory_format:
    # Of three and more than five dimensions only the contiguous format has a name.
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(x.dim(), torch.contiguous_format)


@triton.jit
def _place(
    channels, length, channel_blocks, chunk_blocks,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """This program's rows, where its tile lies, and the positions that it walks over."""
    # Sizes come divided by what they are known to be multiples of: the compiler then knows too.
    if CHANNELS_LAST:
        channels = channels * UNIT
    else:
        length = length * UNIT
    sample = tl.program_id(0) // channel_blocks
    first = tl.program_id(0) % channel_blocks * ROWS
    within = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    if CHANNELS_LAST:
        base = sample.to(tl.int64) * length * channels + first
        tile = within + columns * channels
        step = channels
    else:
        base = (sample.to(tl.int64) * channels + first) * length
        tile = within * length + columns
        step = 1
    rows = sample * channels + first + tl.arange(0, ROWS)
    row_mask = first + tl.arange(0, ROWS) < channels
    start = tl.program_id(1) * chunk_blocks * BLOCK
    end = tl.minimum(start + chunk_blocks * BLOCK, length)
    return rows, row_mask, base, tile, step, start, end, length


# --- forward ---------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_SIZES)
def _moments_kernel(
    x, mean_out, var_out, row_count,
    channels, length, channel_blocks, chunk_blocks,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    rows, row_mask, base, tile, step, start, end, length = _place(
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


@triton.jit(do_not_specialize=_SIZES)
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
    """`passes.moments`."""
    x = _dense(x)
    tiling = _tile(x, reduces=True)
    rows, splits = x.shape[0] * x.shape[1], tiling.grid[1]
    result = x.new_empty((2, *x.shape[:2]), dtype=torch.float32)
    parts = result if splits == 1 else x.new_empty((2, splits, rows), dtype=torch.float32)
    with _on(x.device):
        _moments_kernel[tiling.grid](x, parts[0], parts[1], rows, *tiling.sizes, **tiling.options)
        if splits > 1:
            chunk = tiling.sizes[3] * tiling.options["BLOCK"]
            _combine_kernel[(triton.cdiv(rows, 256),)](
                parts[0], parts[1], result[0], result[1], rows, x.numel() // rows, chunk, splits,
                BLOCK=256, num_warps=4,
            )  # fmt: skip
    return result[0], result[1]


@triton.jit(do_not_specialize=_SIZES)
def _transform_kernel(
    x, y, mean, scale, offset,
    channels, length, channel_blocks, chunk_blocks,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    rows, row_mask, base, tile, step, start, end, length = _place(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    center = tl.load(mean + rows, mask=row_mask, other=0.0)[:, None]
    slope = tl.load(scale + rows, mask=row_mask, other=0.0)[:, None]
    level = tl.load(offset + rows, mask=row_mask, other=0.0)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    for at in range(start, end, BLOCK):
        mask = (at + columns < length) & row_mask[:, None]
        there = base + tl.cast(at, tl.int64) * step + tile
        value = tl.load(x + there, mask=mask, other=0.0).to(tl.float32)
        value = (value - center) * slope + level
        tl.store(y + there, value.to(y.dtype.element_ty), mask=mask)


def transform(x: Tensor, mean: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`passes.transform`."""
    x = _dense(x)
    tiling = _tile(x, reduces=False)
    y = torch.empty_like(x)
    numbers = [t.expand(x.shape[:2]).contiguous() for t in (mean, scale, offset)]
    with _on(x.device):
        _transform_kernel[tiling.grid](x, y, *numbers, *tiling.sizes, **tiling.options)
    return y


# --- backward --------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_SIZES)
def _reduce_kernel(
    dy, x, mean, sum_out, dot_out, row_count,
    channels, length, channel_blocks, chunk_blocks,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    rows, row_mask, base, tile, step, start, end, length = _place(
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
    """`passes.reduce_gradient`."""
    x = _dense(x)
    dy = _like(dy, x)
    tiling = _tile(x, reduces=True)
    rows, splits = x.shape[0] * x.shape[1], tiling.grid[1]
    parts = x.new_empty((2, splits, *x.shape[:2]), dtype=torch.float32)
    mean = mean.expand(x.shape[:2]).contiguous()
    with _on(x.device):
        _reduce_kernel[tiling.grid](
            dy, x, mean, parts[0], parts[1], rows, *tiling.sizes, **tiling.options
        )
    sums = parts[:, 0] if splits == 1 else parts.sum(1)
    return sums[0], sums[1]


@triton.jit(do_not_specialize=_SIZES)
def _input_gradient_kernel(
    dy, x, dx, mean, scale, dmean, dvar, slope_factor, level_factor,
    channels, length, channel_blocks, chunk_blocks,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    rows, row_mask, base, tile, step, start, end, length = _place(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    center = tl.load(mean + rows, mask=row_mask, other=0.0)[:, None]
    gain = tl.load(scale + rows, mask=row_mask, other=0.0)[:, None]
    level = tl.load(dmean + rows, mask=row_mask, other=0.0)[:, None] * level_factor
    slope = tl.load(dvar + rows, mask=row_mask, other=0.0)[:, None] * slope_factor
    columns = tl.arange(0, BLOCK)[None, :]
    for at in range(start, end, BLOCK):
        mask = (at + columns < length) & row_mask[:, None]
        there = base + tl.cast(at, tl.int64) * step + tile
        grad = tl.load(dy + there, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + there, mask=mask, other=0.0).to(tl.float32)
        result = gain * grad + slope * (value - center) + level
        tl.store(dx + there, result.to(dx.dtype.element_ty), mask=mask)


def input_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor, dvar: Tensor
) -> Tensor:
    """`passes.input_gradient`, for statistics that were taken from ``x``."""
    x = _dense(x)
    dy = _like(dy, x)
    tiling = _tile(x, reduces=False)
    dx = torch.empty_like(x)
    numbers = [t.expand(x.shape[:2]).contiguous() for t in (mean, scale, dmean, dvar)]
    length = x.numel() // (x.shape[0] * x.shape[1])
    slope_factor = 2 / length if length > 1 else 0.0  # at L = 1 x is its own mean
    with _on(x.device):
        _input_gradient_kernel[tiling.grid](
            dy, x, dx, *numbers, slope_factor, 1 / length, *tiling.sizes, **tiling.options
        )
    return dx


# --- weight standardization ------------------------------------------------------------------


@triton.jit(do_not_specialize=_SIZES)
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


@triton.jit(do_not_specialize=_SIZES)
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
    weight = _dense(weight)
    out = torch.empty_like(weight)
    numbers = weight.new_empty((2, weight.shape[0], 1), dtype=torch.float32)
    fan_in, options = _filter_options(weight)
    with _on(weight.device):
        _standardize_kernel[(weight.shape[0],)](
            weight, out, numbers[0], numbers[1], fan_in, eps, INSIDE=inside, **options
        )
    return out, numbers[0], numbers[1]


def standardize_backward(grad: Tensor, hat: Tensor, denominator: Tensor, root: Tensor) -> Tensor:
    """The weight's gradient from that of the standardized weight ``hat``."""
    hat = _dense(hat)
    grad = _like(grad, hat)
    dweight = torch.empty_like(hat)
    fan_in, options = _filter_options(hat)
    with _on(hat.device):
        _standardize_backward_kernel[(hat.shape[0],)](
            grad, hat, dweight, denominator, root, fan_in, **options
        )
    return dweight
