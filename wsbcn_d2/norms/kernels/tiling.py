"""How Triton's programs cut a feature map into tiles, and what every launch needs.

A program works on a tile of ``ROWS`` channels of one sample by ``BLOCK`` positions, and walks along
the positions; where there are fewer rows than the chip has room for, as at one or two images, the
positions of a pass that sums are split among programs.

Image sizes change with every step of a detector, so no kernel is compiled for one: sizes are
ordinary arguments, and what is compiled for is the tile (four choices of it by the length of a row,
two memory formats), how many elements of a row can be loaded at once, and the type.
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
    "SIZES",
    "Tiling",
    "dense",
    "like",
    "on_device",
    "place",
    "place_channels",
    "tile",
    "wanted_programs",
]

# Elements of a tile and its warps: 16 a thread, which is four 16-byte loads of float32 in flight.
_TILE = 4096
_WARPS = 8
# Programs a multiprocessor should get, for the kernels that reduce.
_PROGRAMS = 8
# Arguments that differ from image to image. Triton would compile for each that is 1 or divisible by
# 16, and anew when that changes.
SIZES = [
    *("channels", "length", "channel_blocks", "chunk_blocks", "row_count", "splits", "fan_in"),
    *("chunk",),
]


class Tiling(NamedTuple):
    grid: tuple[int, int]
    sizes: tuple[int, int, int, int]  # channels, length (the fast one in units), blocks, chunk
    options: dict[str, Any]


@functools.lru_cache(maxsize=4096)
def tiling(
    shape: tuple[int, int, int], channels_last: bool, programs: int, reduces: bool
) -> Tiling:
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
    return Tiling(grid, sizes, options)


@functools.lru_cache(maxsize=64)
def wanted_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return _PROGRAMS  # the interpreter
    return _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


def tile(x: Tensor, reduces: bool) -> Tiling:
    shape = x.shape[0], x.shape[1], x.numel() // (x.shape[0] * x.shape[1])
    return tiling(shape, not x.is_contiguous(), wanted_programs(x.device), reduces)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def dense(x: Tensor) -> Tensor:
    """``x`` itself if contiguous or channels_last, else a contiguous copy."""
    return x if x.is_contiguous() or x.is_contiguous(memory_format=_last(x)) else x.contiguous()


def like(dy: Tensor, x: Tensor) -> Tensor:
    """``dy`` in the memory format of the dense ``x``."""
    return dy.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else _last(x))


def _last(x: Tensor) -> torch.memory_format:
    # Of three and more than five dimensions only the contiguous format has a name.
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(x.dim(), torch.contiguous_format)


@triton.jit
def place(
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


@triton.jit
def place_channels(
    channels, length, channel_blocks, chunk_blocks,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """`place`, behind the sample of this program's rows, their channels, and how many there are."""
    rows, row_mask, base, tile, step, start, end, length = place(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    if CHANNELS_LAST:
        channels = channels * UNIT
    n = tl.program_id(0) // channel_blocks
    return (n, rows - n * channels, channels, rows, row_mask, base, tile, step, start, end,
            length)  # fmt: skip
