"""The passes on CPU: torch's own kernels, put to work on rows.

A fresh tensor of the size of ``x`` costs page faults that take longer than the arithmetic, so only
results are allocated whole; where more is needed it happens in blocks that stay in the cache.

*rows* is contiguous ``x`` as one sample of N * C channels; *columns* is channels_last ``x`` as
``(N, L, C)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["input_gradient", "moments", "reduce_gradient", "supports", "transform"]

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


def supports(x: Tensor) -> bool:
    """Whether the passes take ``x``: dense, (N, C, *), not empty."""
    return _layout(x) != "any"


def _layout(x: Tensor) -> str:
    """``"rows"``, ``"columns"`` (channels_last) or, where no kernel of the CPU fits, ``"any"``.

    With one channel or one position a tensor may be both contiguous and channels_last; torch's
    kernels take such a one for channels_last, and would mix its rows.
    """
    is_plain = type(x) in (Tensor, nn.Parameter)  # a tracer's stand-in has no values to look at
    if x.dim() < 3 or x.numel() == 0 or not is_plain:
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
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if _layout(x) == "rows":
        return _row_moments(_as_rows(x), dtype, x.shape[:2])
    columns = _as_columns(x)
    mean = columns.sum(1, keepdim=True, dtype=dtype).div_(columns.shape[1])
    var = torch.zeros_like(mean)
    for block in _blocks(columns):
        var += (columns[:, block] - mean).square_().sum(1, keepdim=True)
    return mean.squeeze(1), var.div_(columns.shape[1]).squeeze(1)


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
    y = torch.empty_like(x)
    if _layout(x) == "columns":
        columns, out = _as_columns(x), _as_columns(y)
        mean, scale, offset = (_per_column(t, x) for t in (mean, scale, offset))
        for block in _blocks(columns):
            part = columns[:, block] - mean
            torch.addcmul(offset, part, scale, out=part)
            out[:, block] = part
        return y
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
    shape = x.shape[:2]
    if _layout(x) == "rows":
        center = mean.expand(shape).reshape(1, -1)
        dy_sum, dy_dot = _sums(_as_rows(dy.contiguous()), _as_rows(x), center)
        return dy_sum.view(shape), dy_dot.view(shape)
    columns, dy_columns = _as_columns(x), _as_columns(dy)
    center = _per_column(mean, x)
    dy_dot = torch.zeros_like(center)
    for block in _blocks(columns):
        dy_dot += (columns[:, block] - center).mul_(dy_columns[:, block]).sum(1, keepdim=True)
    return dy_columns.sum(1, dtype=mean.dtype), dy_dot.view(shape)


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
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor, dvar: Tensor
) -> Tensor:
    length = x.numel() // (x.shape[0] * x.shape[1])
    # At L = 1 x is its own mean. Only there may dvar be so large that rounding would show.
    slope = dvar * (2 / length) if length > 1 else torch.zeros_like(dvar)
    level = dmean / length
    dx = torch.empty_like(x)
    if _layout(x) == "columns":
        columns, dy_columns, dx_columns = _as_columns(x), _as_columns(dy), _as_columns(dx)
        mean, slope, level, scale = (_per_column(t, x) for t in (mean, slope, level, scale))
        for block in _blocks(columns):
            part = columns[:, block] - mean
            torch.addcmul(level, part, slope, out=part)
            dx_columns[:, block] = part.addcmul_(dy_columns[:, block].to(mean.dtype), scale)
        return dx
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
