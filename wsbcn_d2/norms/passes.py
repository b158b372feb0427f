"""The four passes over a feature map that every norm of this package is made of.

A *row* is one (sample, channel) pair: ``L`` positions. Two passes read for the forward result
(`moments`, `transform`), two for the gradient (`reduce_gradient`, `input_gradient`). All small
numbers are ``(N, C)`` tensors in the accumulation type: float64 for float64 input, else float32.

On CPU they are torch's own kernels, put to work on rows. A fresh tensor of the size of ``x`` costs
page faults that take longer than the arithmetic, so only results are allocated whole; where more is
needed it happens in blocks that stay in the cache.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor, nn

__all__ = [
    "accumulation_dtype",
    "input_gradient",
    "kernels_for",
    "moments",
    "reduce_gradient",
    "transform",
]

logger = logging.getLogger(__name__)

# Added to the variance inside torch's own row kernel and taken off again right after. It only
# keeps 1/sqrt(0) finite: next to any sensible ``eps`` of a norm it is nothing.
_ROW_EPS = {torch.float32: 1e-12, torch.float64: 1e-24}
# E[x^2] - mean^2 is taken for the variance of rows up to this ratio of the squared mean to it, and
# over pieces of about this many positions; the other rows get Welford's algorithm.
_SAFE_RATIO = 9.0
_PIECE = 4096
# In one operation (x - mean) * scale is x * scale - mean * scale. Up to this size of the latter, in
# standard deviations, no more than a rounding error of the result is lost; beyond, x is centred.
_CANCELS = 16.0
# Bytes of a block: a thread's, and at most for all together. Within the caches, and below the size
# from which the allocator hands memory back to the system each time.
_BLOCK_OF_A_THREAD = 4 * 2**20
_BLOCK = 16 * 2**20


@functools.cache
def kernels_for(device: torch.device) -> ModuleType | None:
    """`triton_kernels` if they run on the device, else None; says once why they do not."""
    if device.type != "cuda":
        return None
    try:
        from . import triton_kernels

        # A driver, a compiler or the GPU itself may be one that Triton cannot do with.
        triton_kernels.moments(torch.zeros(1, 1, 16, device=device))
    except Exception as error:
        logger.warning(f"Norms on {device} use torch's operators: Triton failed with {error!r}")
        return None
    return triton_kernels


def _kernels(x: Tensor) -> ModuleType | None:
    kernels = kernels_for(x.device)
    return kernels if kernels is not None and kernels.supports(x) else None


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for everything else (float16 sums overflow at 65504)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _spread(rows: Tensor, x: Tensor) -> Tensor:
    """``(N, C)`` or ``(C,)`` numbers, shaped to broadcast against ``x`` of shape (N, C, *)."""
    return rows.reshape(rows.shape + (1,) * (x.dim() - 2))


def _layout(x: Tensor) -> str:
    """``"rows"``, ``"columns"`` (channels_last) or, where no kernel of the CPU fits, ``"any"``.

    With one channel or one position a tensor may be both contiguous and channels_last; torch's
    kernels take such a one for channels_last, and would mix its rows.
    """
    is_plain = type(x) in (Tensor, nn.Parameter)  # a tracer's stand-in has no values to look at
    if x.device.type != "cpu" or x.dim() < 3 or x.numel() == 0 or not is_plain:
        return "any"
    memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    columns = memory_format is not None and x.is_contiguous(memory_format=memory_format)
    if x.is_contiguous():
        return "any" if columns else "rows"
    return "columns" if columns else "any"


def _as_rows(x: Tensor) -> Tensor:
    """Contiguous ``x`` as one sample of N * C channels."""
    rows = x.shape[0] * x.shape[1]
    return x.view(1, rows, x.numel() // rows)


def _as_columns(x: Tensor) -> Tensor:
    """channels_last ``x`` as ``(N, L, C)``."""
    return x.flatten(2).transpose(1, 2)


def _blocks(x: Tensor) -> Iterator[slice]:
    """Slices of dimension 1 of ``(1, rows, L)`` or ``(N, L, C)`` that make blocks."""
    threads = torch.get_num_threads()
    size = x.shape[0] * x.shape[2] * max(4, x.element_size())
    step = max(min(_BLOCK_OF_A_THREAD * threads, _BLOCK) // size, threads)
    for start in range(0, x.shape[1], step):
        yield slice(start, start + step)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each row, ``(N, C)`` each: the first read of ``x``.

    Args:
        x: ``(N, C, *)``. Rows without a position (an empty batch or map) count as mean 0,
            variance 0.
    """
    if kernels := _kernels(x):
        return kernels.moments(x)
    dtype = accumulation_dtype(x)
    shape = x.shape[:2]
    if x.dim() == 2:
        return x.detach().to(dtype), x.new_zeros(shape, dtype=dtype)
    if x.numel() == 0:
        return x.new_zeros(shape, dtype=dtype), x.new_zeros(shape, dtype=dtype)
    layout = _layout(x)
    if layout == "any":
        var, mean = torch.var_mean(x.to(dtype), dim=tuple(range(2, x.dim())), correction=0)
        return mean, var
    if layout == "columns":
        columns = _as_columns(x)
        mean = columns.sum(1, keepdim=True, dtype=dtype).div_(columns.shape[1])
        var = torch.zeros_like(mean)
        for block in _blocks(columns):
            var += (columns[:, block] - mean).square_().sum(1, keepdim=True)
        return mean.view(shape), var.div_(columns.shape[1]).view(shape)
    return _row_moments(_as_rows(x), dtype, shape)


def _row_moments(rows: Tensor, dtype: torch.dtype, shape: torch.Size) -> tuple[Tensor, Tensor]:
    count, length = rows.shape[1:]
    pieces = math.gcd(length, 64) if length > _PIECE else 1
    split = rows.view(1, count * pieces, length // pieces)
    total, squares = _sums(split, split, torch.zeros(split.shape[:2], dtype=dtype))
    means = total.view(count, pieces).div_(split.shape[2])
    variances = squares.view(count, pieces).div_(split.shape[2]).addcmul_(means, means, value=-1)
    if pieces == 1:
        mean, var = means[:, 0], variances[:, 0]
    else:  # the law of total variance
        mean = means.mean(1)
        var = variances.mean(1) + (means - mean.unsqueeze(1)).square_().mean(1)
    unsafe = (mean.square() > _SAFE_RATIO * var).nonzero().flatten()
    # One group a row: Welford moments, several times faster than var_mean. The normalized block
    # that comes with them is not wanted; it never leaves the cache.
    for block in _blocks(rows[:, : len(unsafe)]):
        chosen = unsafe[block]
        part = rows[:, chosen].to(dtype)
        _, part_mean, rstd = torch.native_group_norm(
            part, None, None, 1, len(chosen), length, len(chosen), _ROW_EPS[dtype]
        )
        mean[chosen] = part_mean[0]
        var[chosen] = rstd[0].pow(-2).sub_(_ROW_EPS[dtype])
    return mean.view(shape), var.clamp_(min=0).view(shape)


def transform(x: Tensor, mean: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """``scale * (x - mean) + offset`` in the type and memory format of ``x``: the second read."""
    if kernels := _kernels(x):
        return kernels.transform(x, mean, scale, offset)
    if _layout(x) == "rows":
        y = torch.empty_like(x)
        rows, out = _as_rows(x), _as_rows(y)
        mean, scale, offset = (_per_row(t, x) for t in (mean, scale, offset))
        if (mean * scale).abs_().max() <= _CANCELS:
            _affine(rows, mean, scale, offset, out)
            return y
        mean, scale, offset = (t.unsqueeze(1) for t in (mean, scale, offset))
        for block in _blocks(rows):
            part = rows[:, block] - mean[block]
            out[:, block] = part.mul_(scale[block]).add_(offset[block])
        return y
    if _layout(x) == "columns":
        y = torch.empty_like(x)
        columns, out = _as_columns(x), _as_columns(y)
        mean, scale, offset = (_per_column(t, x) for t in (mean, scale, offset))
        for block in _blocks(columns):
            part = columns[:, block] - mean
            torch.addcmul(offset, part, scale, out=part)
            out[:, block] = part
        return y
    y = x.to(mean.dtype) - _spread(mean, x)
    y.mul_(_spread(scale, x)).add_(_spread(offset, x))
    return y.to(x.dtype)


def _per_row(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.expand(x.shape[:2]).reshape(-1)


def _per_column(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.expand(x.shape[:2]).unsqueeze(1)


def _affine(rows: Tensor, mean: Tensor, scale: Tensor, offset: Tensor, out: Tensor) -> None:
    """``out = scale * (rows - mean) + offset`` for ``rows (1, rows, L)``, in one pass.

    Batch norm in evaluation is the one kernel of torch that does so for any pair of types.
    """
    one, unused = torch.ones_like(mean), mean.new_empty(0)
    torch.ops.aten.native_batch_norm.out(
        rows, scale, offset, mean, one, False, 0.0, 0.0,
        out=out, save_mean=unused, save_invstd=unused,
    )  # fmt: skip


def reduce_gradient(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``sum dy`` and ``sum dy * (x - mean)`` of each row, ``(N, C)`` each: the third read."""
    if kernels := _kernels(x):
        return kernels.reduce_gradient(dy, x, mean)
    dtype = mean.dtype
    shape = x.shape[:2]
    if x.numel() == 0:
        return x.new_zeros(shape, dtype=dtype), x.new_zeros(shape, dtype=dtype)
    if x.dim() == 2:
        dy = dy.to(dtype)
        return dy, dy * (x.to(dtype) - mean)
    layout = _layout(x)
    if layout == "rows":
        center = mean.expand(shape).reshape(1, -1)
        dy_sum, dy_dot = _sums(_as_rows(dy.contiguous()), _as_rows(x), center)
        return dy_sum.view(shape), dy_dot.view(shape)
    if layout == "columns":
        columns, dy_columns = _as_columns(x), _as_columns(dy)
        center = _per_column(mean, x)
        dy_dot = torch.zeros_like(center)
        for block in _blocks(columns):
            dy_dot += (columns[:, block] - center).mul_(dy_columns[:, block]).sum(1, keepdim=True)
        return dy_columns.sum(1, dtype=dtype), dy_dot.view(shape)
    dims = tuple(range(2, x.dim()))
    dy = dy.to(dtype)
    return dy.sum(dims), (x.to(dtype) - _spread(mean, x)).mul_(dy).sum(dims)


def _sums(dy: Tensor, rows: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``sum dy`` and ``sum dy * (rows - mean)`` of each row, for any pair of types."""
    count, length = rows.shape[1:]
    one = torch.ones_like(mean)
    # With a reciprocal deviation of 1 the gradients of an affine pair a row are the two sums.
    _, dy_dot, dy_sum = torch.ops.aten.native_group_norm_backward(
        dy, rows, mean, one, one[0], 1, count, length, count, [False, True, True]
    )
    return dy_sum, dy_dot


def input_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor | None, dvar: Tensor | None
) -> Tensor:
    """``dx = scale * dy + (2 dvar / L)(x - mean) + dmean / L``: the fourth read.

    ``dmean`` and ``dvar`` are the gradients of the row statistics, or None where the statistics
    were not taken from ``x``.
    """
    if dmean is None or dvar is None or x.numel() == 0:
        return (dy.to(mean.dtype) * _spread(scale, x)).to(x.dtype)
    if kernels := _kernels(x):
        return kernels.input_gradient(dy, x, mean, scale, dmean, dvar)
    length = x.numel() // (x.shape[0] * x.shape[1])
    # At L = 1 x is its own mean. Only there may dvar be so large that rounding would show.
    slope = dvar * (2 / length) if length > 1 else torch.zeros_like(dvar)
    level = dmean / length
    layout = _layout(x)
    if layout == "rows":
        dx = torch.empty_like(x)
        rows, dy_rows, dx_rows = _as_rows(x), _as_rows(dy.contiguous()), _as_rows(dx)
        mean, slope, level, scale = (_per_row(t, x) for t in (mean, slope, level, scale))
        if dx.dtype == mean.dtype:
            _affine(rows, mean, slope, level, dx_rows)
            dx_rows.addcmul_(dy_rows.to(dx.dtype), scale.unsqueeze(1))
            return dx
        for block in _blocks(rows):  # summed in the wider type
            part = rows[:, block].to(mean.dtype)
            wide = torch.empty_like(part)
            _affine(part, mean[block], slope[block], level[block], wide)
            dx_rows[:, block] = wide.addcmul_(dy_rows[:, block], scale[block].unsqueeze(1))
        return dx
    if layout == "columns":
        dx = torch.empty_like(x)
        columns, dy_columns, dx_columns = _as_columns(x), _as_columns(dy), _as_columns(dx)
        mean, slope, level, scale = (_per_column(t, x) for t in (mean, slope, level, scale))
        for block in _blocks(columns):
            part = columns[:, block] - mean
            torch.addcmul(level, part, slope, out=part)
            dx_columns[:, block] = part.addcmul_(dy_columns[:, block].to(mean.dtype), scale)
        return dx
    dx = dy.to(mean.dtype) * _spread(scale, x)
    dx.addcmul_(x.to(mean.dtype), _spread(slope, x))
    dx.add_(_spread(level - slope * mean, x))
    return dx.to(x.dtype)
