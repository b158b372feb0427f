"""Pooling instance statistics over samples, channels and ranks, and the moving averages of them.

All functions take row statistics ``mean, var`` of shape (N, C) (variance biased, over the L
positions of a row) and pool them by the law of total variance, a sum of non-negative terms:
``var = E[var_nc] + E[(mean_nc - mean)^2]``. E[x^2] - mean^2 would cancel: in float32 it turns
negative at mean 100, standard deviation 0.01.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .affine import recomputing

__all__ = [
    "frozen",
    "group_world_size",
    "move_running_statistics",
    "pool_batch",
    "pool_channels",
    "pool_ranks",
]


def pool_channels(mean: Tensor, var: Tensor, num_groups: int = 1) -> tuple[Tensor, Tensor]:
    """Pool over consecutive channel groups: ``(N, C)`` -> ``(N, num_groups)`` (LN: one group)."""
    mean = mean.unflatten(1, (num_groups, -1))
    pooled = mean.mean(2)
    spread = (mean - pooled.unsqueeze(2)).square()
    return pooled, (var.unflatten(1, (num_groups, -1)) + spread).mean(2)


def pool_batch(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Pool over the batch: ``(N, C)`` -> ``(C,)`` (BN). An empty batch gives zeros, not NaN."""
    count = max(mean.shape[0], 1)
    pooled = mean.sum(0) / count
    return pooled, (var + (mean - pooled).square()).sum(0) / count


def pool_ranks(
    mean: Tensor,
    var: Tensor,
    positions: int,
    shift: Tensor,
    process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool over the batches of all ranks: one all_reduce forward, one backward.

    Every rank must call it, a rank with an empty batch too. Ranks count by their number of
    positions, so batches and maps of different size pool as if joined.

    Args:
        mean, var: ``(N, C)`` row statistics of this rank.
        positions: L, the positions of one row on this rank.
        shift: ``(C,)``, equal on all ranks; the sums are taken about it. With float64 sums this
            leaves nothing to cancel.
        process_group: the ranks to pool over; the default group if None.

    Returns:
        ``mean (C,)``, ``var (C,)`` and the number of positions pooled (0-dim, float64).
    """
    shift = shift.double()
    centered = mean.double() - shift
    sums = torch.cat(
        [
            centered.sum(0) * positions,
            (var.double() + centered.square()).sum(0) * positions,
            centered.new_full((1,), mean.shape[0] * positions),
        ]
    )
    first, second, count = _AllReduce.apply(sums, process_group).split(
        [mean.shape[1], mean.shape[1], 1]
    )
    total = count.detach().clamp(min=1)
    offset = first / total
    pooled_var = (second / total - offset.square()).clamp(min=0)
    return (shift + offset).to(mean.dtype), pooled_var.to(var.dtype), count.detach()[0]


class _AllReduce(torch.autograd.Function):
    """Sum over ranks; the gradient of a sum is the sum of the gradients.

    The last number, the count of positions, has no gradient and is left out on the way back.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
        ctx.process_group = process_group
        sums = sums.clone()
        dist.all_reduce(sums, group=process_group)
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        reduced = _AllReduceGradient.apply(grad[:-1], ctx.process_group)
        return torch.cat([reduced, torch.zeros_like(grad[-1:])]), None


class _AllReduceGradient(torch.autograd.Function):
    """Sum over ranks, its own derivative: makes `_AllReduce` twice differentiable."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
        ctx.process_group = process_group
        grad = grad.clone()
        dist.all_reduce(grad, group=process_group)
        return grad

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduceGradient.apply(grad, ctx.process_group), None


def group_world_size(process_group: dist.ProcessGroup | None) -> int:
    """The number of ranks in the group; 1 where torch.distributed is not initialized."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(process_group)


def frozen(*modules: nn.Module) -> bool:
    """Whether none of the modules' own parameters is trained.

    That is what detectron2's ``freeze_at`` leaves behind for a norm that is not a BatchNorm; such
    a norm uses its evaluation statistics in training too.
    """
    return not any(p.requires_grad for m in modules for p in m.parameters(recurse=False))


@torch.no_grad()
def move_running_statistics(
    module: nn.Module, mean: Tensor, var: Tensor, count: int | Tensor
) -> None:
    """Move ``running_mean`` and ``running_var`` of ``module`` toward this batch's ``(C,)`` values.

    ``new = (1 - momentum) * old + momentum * batch``; ``momentum=None`` averages all batches
    plainly, as in torch. Nothing moves in the recomputation of an activation checkpoint, nor for
    an empty batch (``count`` 0; a tensor, so that no device synchronizes, when pooled over ranks).
    """
    running_mean, running_var = module.running_mean, module.running_var
    tracked, momentum = module.num_batches_tracked, module.momentum
    assert isinstance(running_mean, Tensor) and isinstance(running_var, Tensor)
    assert isinstance(tracked, Tensor)
    if recomputing() or (isinstance(count, int) and count == 0):
        return
    seen = count > 0
    tracked.add_(seen)
    # Made where it is used: a number brought to a GPU would wait for it.
    rate: Any = momentum if isinstance(momentum, float | int) else 1 / tracked.clamp(min=1)
    if isinstance(seen, Tensor):
        rate = rate * seen
    if isinstance(rate, Tensor):
        rate = rate.to(running_mean.dtype)
    running_mean.lerp_(mean.detach().to(running_mean.dtype), rate)
    running_var.lerp_(var.detach().to(running_var.dtype), rate)
