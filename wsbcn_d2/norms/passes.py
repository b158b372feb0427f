"""The four passes over a feature map that every norm of this package is made of.

A *row* is one (sample, channel) pair: ``L`` positions. Two passes read for the forward result
(`moments`, `transform`), two for the gradient (`reduce_gradient`, `input_gradient`). All small
numbers are ``(N, C)`` tensors in the accumulation type: float64 for float64 input, else float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulation_dtype", "input_gradient", "moments", "reduce_gradient", "transform"]

# Added to the variance inside torch's own row kernel and taken off again right after. It only
# keeps 1/sqrt(0) finite: next to any sensible ``eps`` of a norm it is nothing.
_ROW_EPS = {torch.float32: 1e-12, torch.float64: 1e-24}


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for everything else (float16 sums overflow at 65504)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _spread(rows: Tensor, x: Tensor) -> Tensor:
    """``(N, C)`` or ``(C,)`` numbers, shaped to broadcast against ``x`` of shape (N, C, *)."""
    return rows.reshape(rows.shape + (1,) * (x.dim() - 2))


def _has_row_kernels(x: Tensor) -> bool:
    """Whether every row of ``x`` is contiguous, so that torch's group norm kernels see rows.

    With one channel or one position a tensor may be both contiguous and channels_last; the kernels
    take such a one for channels_last, and would mix its rows.
    """
    if x.device.type != "cpu" or x.dim() < 3 or x.numel() == 0 or not x.is_contiguous():
        return False
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return channels_last is None or not x.is_contiguous(memory_format=channels_last)


def _as_rows(x: Tensor) -> Tensor:
    rows = x.shape[0] * x.shape[1]
    return x.reshape(1, rows, x.numel() // rows)


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and biased variance of each row: the first read of ``x``.

    Args:
        x: ``(N, C, *)``. Rows without a position (an empty batch or map) count as mean 0,
            variance 0.

    Returns:
        ``mean (N, C)``, ``var (N, C)`` and, where the kernel makes it on the way, ``(x - mean) /
        sqrt(var)`` as scratch space that `transform` may overwrite (else None).
    """
    dtype = accumulation_dtype(x)
    if x.dim() == 2:
        return x.detach().to(dtype), x.new_zeros(x.shape, dtype=dtype), None
    if x.numel() == 0:
        return x.new_zeros(x.shape[:2], dtype=dtype), x.new_zeros(x.shape[:2], dtype=dtype), None
    if not _has_row_kernels(x):
        var, mean = torch.var_mean(x.to(dtype), dim=tuple(range(2, x.dim())), correction=0)
        return mean, var, None
    count = x.shape[0] * x.shape[1]
    eps = _ROW_EPS[dtype]
    # One group a row: Welford moments and the normalized rows in a single call, several times
    # faster than var_mean on CPU. The kernel sees one sample of N * C channels; x itself is passed,
    # not a view in that shape, so that the result is no view either and may be changed in place
    # (relu_) behind an autograd function.
    scratch, mean, rstd = torch.native_group_norm(
        x.to(dtype), None, None, 1, count, x.numel() // count, count, eps
    )
    var = rstd.pow(-2).sub_(eps).clamp_(min=0)
    return mean.view(x.shape[:2]), var.view(x.shape[:2]), scratch


def transform(
    x: Tensor,
    mean: Tensor,
    var: Tensor | None,
    scale: Tensor,
    offset: Tensor,
    scratch: Tensor | None,
) -> Tensor:
    """``scale * (x - mean) + offset`` in the type and memory format of ``x``: the second read."""
    if scratch is not None and var is not None:
        # scratch holds (x - mean) / sqrt(var + eps): undo its denominator in the scale.
        std = (var + _ROW_EPS[scratch.dtype]).sqrt_()
        y = scratch.mul_(_spread(scale * std, x)).add_(_spread(offset, x))
    else:
        y = x.to(mean.dtype) - _spread(mean, x)
        y.mul_(_spread(scale, x)).add_(_spread(offset, x))
    return y.to(x.dtype)


def reduce_gradient(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``sum dy`` and ``sum dy * (x - mean)`` of each row, ``(N, C)`` each: the third read."""
    dtype = mean.dtype
    if x.numel() == 0:
        return x.new_zeros(x.shape[:2], dtype=dtype), x.new_zeros(x.shape[:2], dtype=dtype)
    if x.dim() == 2:
        dy = dy.to(dtype)
        return dy, dy * (x.to(dtype) - mean)
    if _has_row_kernels(x):
        rows, dy_rows = _as_rows(x.to(dtype)), _as_rows(dy.contiguous().to(dtype))
        count, length = rows.shape[1:]
        means = mean.expand(x.shape[:2]).reshape(1, count)
        _, dscale, doffset = torch.ops.aten.native_group_norm_backward(
            dy_rows, rows, means, torch.ones_like(means), None, 1, count, length, count,
            [False, True, True],
        )  # fmt: skip
        return doffset.view(x.shape[:2]), dscale.view(x.shape[:2])
    dims = tuple(range(2, x.dim()))
    dy = dy.to(dtype)
    return dy.sum(dims), (x.to(dtype) - _spread(mean, x)).mul_(dy).sum(dims)


def input_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor | None, dvar: Tensor | None
) -> Tensor:
    """``dx = scale * dy + (2 dvar / L)(x - mean) + dmean / L``: the fourth read.

    ``dmean`` and ``dvar`` are the gradients of the row statistics, or None where the statistics
    were not taken from ``x``.
    """
    dx = dy.to(mean.dtype) * _spread(scale, x)
    if dmean is not None and dvar is not None and x.numel() > 0:
        length = x.numel() // (x.shape[0] * x.shape[1])
        slope = dvar * (2 / length)
        if length > 1:  # at L = 1 x equals its own mean
            dx.addcmul_(x.to(mean.dtype), _spread(slope, x))
            dx.add_(_spread(dmean / length - slope * mean, x))
        else:
            dx.add_(_spread(dmean, x))
    return dx.to(x.dtype)
