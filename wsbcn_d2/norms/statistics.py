"""Pooling instance statistics over samples, channels and ranks, and the moving averages of them.

All functions take row statistics ``mean, var`` of shape (N, C) (variance biased, over the L
positions of a row) and pool them by the law of total variance, a sum of non-negative terms:
``var = E[var_nc] + E[(mean_nc - mean)^2]``. E[x^2] - mean^2 would cancel: in float32 it turns
negative at mean 100, standard deviation 0.01.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .affine import recomputing
from .ranks import Ranks, not_compiled
from .recall import Recall

__all__ = [
    "RankPool",
    "average_about",
    "frozen",
    "move_running_statistics",
    "pool_batch",
    "pool_channels",
    "pool_ranks",
    "pooled_moments",
    "sum_about",
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
    mean: Tensor, var: Tensor, positions: int, shift: Tensor, ranks: Ranks, recall: Recall
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool over the batches of all ranks: one all_reduce forward, one backward.

    Every rank must call it, a rank with an empty batch too. Ranks count by their number of
    positions, so batches and maps of different size pool as if joined. The recomputation of an
    activation checkpoint gets the sums of the first time, and issues the backward one only.

    Args:
        mean, var: ``(N, C)`` row statistics of this rank.
        positions: L, the positions of one row on this rank.
        shift: ``(C,)``, equal on all ranks; the sums are taken about it. With float64 sums this
            leaves nothing to cancel.
        ranks: to pool over.
        recall: of the layer, for recomputations.

    Returns:
        ``mean (C,)``, ``var (C,)`` and the number of positions pooled (0-dim, float64).
    """
    known = recall.find(mean, positions)
    if known is None:
        shift = shift.double()
        sums = sum_about(mean, var, positions, shift)
        # Without a gradient, ranks that skip the layer have nothing to make up for either.
        owed = ranks.take_turn(differentiable=sums.requires_grad)
        sums = _all_reduce(sums, ranks, owed, None)
        recall.keep(mean, positions, shift, sums)
    else:
        shift, total = known
        sums = sum_about(mean, var, positions, shift)
        sums = _all_reduce(sums, ranks, (), total)
    pooled_mean, pooled_var, count = pooled_moments(sums, shift)
    return pooled_mean.to(mean.dtype), pooled_var.to(var.dtype), count


def pooled_moments(sums: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance ``(C,)`` and the count from all ranks' `sum_about`, in float64."""
    offset, second, count = average_about(sums)
    return shift.double() + offset, (second - offset.square()).clamp(min=0), count


class RankPool:
    """`pool_ranks` for one forward without autograd, and the way back through it.

    Args:
        positions, shift, ranks, recall: as in `pool_ranks`.
    """

    def __init__(self, positions: int, shift: Tensor, ranks: Ranks, recall: Recall) -> None:
        self._positions, self._shift = positions, shift
        self._ranks, self._recall = ranks, recall
        # Asked here: inside an autograd function gradients are always off.
        self._differentiable = torch.is_grad_enabled()
        self._owed: tuple[int, ...] = ()
        self._share: Tensor | None = None

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance ``(C,)`` and the number of positions pooled, as `pool_ranks`."""
        known = self._recall.find(mean, self._positions)
        if known is None:
            shift = self._shift.double()
            sums = sum_about(mean, var, self._positions, shift)
            self._owed = self._ranks.take_turn(self._differentiable)
            self._ranks.add_up(sums)
            self._recall.keep(mean, self._positions, shift, sums)
        else:
            shift, sums = known
        pooled_mean, pooled_var, count = pooled_moments(sums, shift)
        self._share = self._positions / count.clamp(min=1)
        return pooled_mean.to(mean.dtype), pooled_var.to(var.dtype), count

    def average(self, sums: Tensor) -> Tensor:
        """Sum gradients ``(2, 1, C)`` or ``(2, C)`` over ranks, and take one row's share."""
        assert self._share is not None
        total = sums.double()
        self._ranks.add_up(total)
        for width in reversed(self._owed):
            self._ranks.add_up(total.new_zeros(width))
        return total.mul_(self._share).to(sums.dtype)


def sum_about(mean: Tensor, var: Tensor, positions: int, shift: Tensor) -> Tensor:
    """The ``(2C + 1,)`` float64 sums of x - shift and its square over all positions, and how many.

    Sums of several ranks add up. ``shift`` is ``(C,)``, float64.
    """
    centered = mean.double() - shift
    return torch.cat(
        [
            centered.sum(0) * positions,
            (var.double() + centered.square()).sum(0) * positions,
            centered.new_full((1,), mean.shape[0] * positions),
        ]
    )


def average_about(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means ``(C,)`` of x - shift and its square, and the count, from `sum_about`'s sums."""
    channels = sums.shape[0] // 2
    first, second, count = sums.split([channels, channels, 1])
    count = count.detach()
    total = count.clamp(min=1)
    return first / total, second / total, count[0]


# torch.compile would put its own collective in the place of this one, without the gradient's.
@not_compiled
def _all_reduce(sums: Tensor, ranks: Ranks, owed: tuple[int, ...], known: Tensor | None) -> Tensor:
    return _AllReduce.apply(sums, ranks, owed, known)


class _AllReduce(torch.autograd.Function):
    """Sum over ranks; the gradient of a sum is the sum of the gradients.

    The last number, the count of positions, has no gradient and is left out on the way back.
    ``owed`` are the widths of the layers that this rank has skipped since its last turn: the others
    wait for its part of their gradients too. ``known`` is the sum, where it is.
    """

    @staticmethod
    def forward(
        ctx: Any, sums: Tensor, ranks: Ranks, owed: tuple[int, ...], known: Tensor | None
    ) -> Tensor:
        ctx.ranks, ctx.owed = ranks, owed
        if known is not None:
            return known.clone()
        sums = sums.clone()
        ranks.add_up(sums)
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        reduced = _AllReduceGradient.apply(grad[:-1], ctx.ranks, (), ctx.owed[::-1])
        return torch.cat([reduced, torch.zeros_like(grad[-1:])]), None, None, None


class _AllReduceGradient(torch.autograd.Function):
    """Sum over ranks, its own derivative: makes `_AllReduce` twice differentiable.

    ``before`` and ``after`` are the widths of the sums that this rank has nothing to add to.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, ranks: Ranks, before: tuple[int, ...], after: tuple[int, ...]
    ) -> Tensor:
        ctx.ranks, ctx.before, ctx.after = ranks, before, after
        grad = grad.clone()
        for width in before:
            ranks.add_up(grad.new_zeros(width))
        ranks.add_up(grad)
        for width in after:
            ranks.add_up(grad.new_zeros(width))
        return grad

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        before, after = ctx.after[::-1], ctx.before[::-1]
        return _AllReduceGradient.apply(grad, ctx.ranks, before, after), None, None, None


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
    rate: Any = momentum if isinstance(momentum, (float, int)) else 1 / tracked.clamp(min=1)
    if isinstance(seen, Tensor):  # a number times a bool would be rounded to float32
        rate = rate * seen.to(running_mean.dtype)
    if isinstance(rate, Tensor):
        rate = rate.to(running_mean.dtype)
    running_mean.lerp_(mean.detach().to(running_mean.dtype), rate)
    running_var.lerp_(var.detach().to(running_var.dtype), rate)
