"""The passes in plain operators: for any device, type and strides."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["input_gradient", "moments", "reduce_gradient", "spread", "transform"]


def spread(rows: Tensor, x: Tensor) -> Tensor:
    """``(N, C)`` or ``(C,)`` numbers, shaped to broadcast against ``x`` of shape (N, C, *)."""
    return rows.reshape(rows.shape + (1,) * (x.dim() - 2))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = x.shape[:2]
    if x.dim() == 2:
        return x.detach().to(dtype), x.new_zeros(shape, dtype=dtype)
    if x.numel() == 0:
        return x.new_zeros(shape, dtype=dtype), x.new_zeros(shape, dtype=dtype)
    var, mean = torch.var_mean(x.to(dtype), dim=tuple(range(2, x.dim())), correction=0)
    return mean, var


def transform(x: Tensor, mean: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    y = x.to(mean.dtype) - spread(mean, x)
    return y.mul_(spread(scale, x)).add_(spread(offset, x)).to(x.dtype)


def reduce_gradient(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    dtype, shape = mean.dtype, x.shape[:2]
    if x.numel() == 0:
        return x.new_zeros(shape, dtype=dtype), x.new_zeros(shape, dtype=dtype)
    dy = dy.to(dtype)
    if x.dim() == 2:
        return dy, dy * (x.to(dtype) - mean)
    dims = tuple(range(2, x.dim()))
    return dy.sum(dims), (x.to(dtype) - spread(mean, x)).mul_(dy).sum(dims)


def input_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor, dvar: Tensor
) -> Tensor:
    length = x.numel() // (x.shape[0] * x.shape[1])
    # At L = 1 x is its own mean. Only there may dvar be so large that rounding would show.
    slope = dvar * (2 / length) if length > 1 else torch.zeros_like(dvar)
    dx = dy.to(mean.dtype) * spread(scale, x)
    dx.addcmul_(x.to(mean.dtype), spread(slope, x))
    dx.add_(spread(dmean / length - slope * mean, x))
    return dx.to(x.dtype)
