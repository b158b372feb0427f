"""Pooling row statistics over channels, the batch and ranks, and the way back.

All take row statistics ``mean, var`` of shape (N, C) (variance biased, over the L positions of a
row) and pool them by the law of total variance, a sum of non-negative terms:
``var = E[var_nc] + E[(mean_nc - mean)^2]``. E[x^2] - mean^2 would cancel: in float32 it turns
negative at mean 100, standard deviation 0.01.

What a norm needs of the batch is a *pool*, made for one forward. It is called once, with the row
statistics; it may move running statistics and ask other ranks; it returns ``(C,)`` tensors. The
gradients of the first two of them go back through `BatchPool.backward`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from .modes import may_be_recomputed, not_compiled, recomputing, tracing
from .running_stats import move_running_statistics
from .sync import Ranks
from .used_estimates import UsedEstimates

__all__ = [
    "BatchPool",
    "Pool",
    "RunningPool",
    "pool_batch",
    "pool_channels",
    "pool_ranks",
    "row_length",
]


def row_length(x: Tensor) -> int:
    """L of ``(N, C, *)``. Multiplied out, because a tracer may not divide by N."""
    length = 1
    for size in x.shape[2:]:
        length *= size
    return length


def pool_channels(mean: Tensor, var: Tensor, num_groups: int = 1) -> tuple[Tensor, Tensor]:
    """Pool over consecutive channel groups: ``(N, C)`` -> ``(N, num_groups)`` (LN: one group)."""
    if num_groups > 1:
        mean, var = (t.unflatten(1, (num_groups, -1)) for t in (mean, var))
    if mean.numel() == 0 or tracing():  # var_mean warns, and exporters do not know it
        pooled = mean.mean(-1, keepdim=True)
        spread = (mean - pooled).square().mean(-1, keepdim=True)
    else:
        spread, pooled = torch.var_mean(mean, -1, correction=0, keepdim=True)
    second = spread + var.mean(-1, keepdim=True)
    return (pooled, second) if num_groups == 1 else (pooled.squeeze(-1), second.squeeze(-1))


def pool_batch(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Pool over the batch: ``(N, C)`` -> ``(C,)`` (BN). An empty batch gives zeros, not NaN."""
    samples = mean.shape[0]
    if not tracing() and samples == 1:
        return mean.squeeze(0), var.squeeze(0)
    count = max(samples, 1)
    pooled = mean.sum(0) / count
    return pooled, (var + (mean - pooled).square()).sum(0) / count


class Pool(Protocol):
    """What a norm takes from the batch, or from batches before it, for one forward."""

    differentiable: bool

    @property
    def fused(self) -> str | None:
        """Which of the pools in `kernels.triton_pools`: "given", "batch" or "estimate"; or none."""

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        """``(C,)`` tensors, the first two a mean and a variance, in the type of ``mean``."""


class RunningPool:
    """The running statistics of ``module`` as they are: no gradient flows through them."""

    differentiable = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def fused(self) -> str | None:
        return "given"

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        return self.running(mean.dtype)

    def running(self, dtype: torch.dtype, copy: bool | None = None) -> tuple[Tensor, ...]:
        """The running mean and variance, ``(C,)`` each.

        Args:
            copy: backward passes need the values of now, whatever later forwards move. None: where
                gradients are on.
        """
        running_mean, running_var = self.module.running_mean, self.module.running_var
        assert isinstance(running_mean, Tensor) and isinstance(running_var, Tensor)
        if copy is None:
            copy = torch.is_grad_enabled()
        if copy or running_mean.dtype != dtype:
            return running_mean.to(dtype, copy=True), running_var.to(dtype, copy=True)
        return running_mean, running_var


class BatchPool:
    """The statistics of this batch, over all ranks if ``ranks`` are several; moves the running.

    Args:
        module: whose running statistics move.
        positions: L.
        ranks: every rank must run the forward, one with an empty batch too; ranks weigh by their
            positions. One all_reduce of 2C + 1 numbers forward and one of 2C backward. The
            recomputation of an activation checkpoint issues them again, as SyncBatchNorm does.
        unbiased: of the variances, multiply "none", the "running" one, or "both" by
            count / (count - 1).
        inner: a factor of the row variances.
        used: also return the running statistics from before their move, and remember them here for
            the recomputation of an activation checkpoint.
    """

    differentiable = True

    def __init__(
        self,
        module: nn.Module,
        positions: int,
        ranks: Ranks | None = None,
        unbiased: str = "none",
        inner: float = 1.0,
        used: UsedEstimates | None = None,
    ) -> None:
        self.module, self.positions, self.unbiased, self.inner = module, positions, unbiased, inner
        self.ranks = ranks if ranks is not None and ranks.size() > 1 else None
        self.used = used
        # Asked here: inside an autograd function gradients are always off.
        self.remembers = used is not None and may_be_recomputed()
        self.share: float | Tensor = 0.0  # of one row, in the batch
        self.correction: float | Tensor = 1.0

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        before: tuple[Tensor, ...] = ()
        if self.used is not None:
            running = RunningPool(self.module)
            before = self.used.once(
                mean, var, lambda: running.running(mean.dtype, copy=True), self.remembers
            )
        if self.inner != 1.0:
            var = var * self.inner
        count: int | Tensor
        if self.ranks is None:
            pooled, second = pool_batch(mean, var)
            count = mean.shape[0] * self.positions
            self.share = 1 / max(mean.shape[0], 1)
            if self.unbiased != "none":
                self.correction = count / max(count - 1, 1)
        else:
            pooled, second, count = self._pool_ranks(mean, var, self.ranks)
        moved = second
        if self.unbiased != "none":
            moved = second * self.correction
            second = moved if self.unbiased == "both" else second
        move_running_statistics(self.module, pooled, moved, count)
        return pooled, second, *before

    def _pool_ranks(self, mean: Tensor, var: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        pooled, second, count = pool_ranks(mean, var, self.positions, ranks)
        self.share = self.positions / count.clamp(min=1)
        if self.unbiased != "none":
            self.correction = (count / (count - 1).clamp(min=1)).to(var.dtype)
        return pooled.to(mean.dtype), second.to(var.dtype), count

    @property
    def fused(self) -> str | None:
        plain = self.ranks is None and self.inner == 1.0 and self.unbiased != "both"
        average = self.module.momentum is None or self.used is not None
        return "batch" if plain and not average else None

    def moves(self) -> bool:
        """Whether this forward moves the running statistics."""
        return not recomputing()

    def running_correction(self, samples: int) -> float:
        """What the running variance's share of the batch's is multiplied by."""
        count = samples * self.positions
        return count / max(count - 1, 1) if self.unbiased == "running" else 1.0

    def backward(
        self, mean: Tensor, pooled: Tensor, dpooled: Tensor, dsecond: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradients of the row statistics, from this rank's of the pooled ones.

        Args:
            mean: ``(N, C)``, as given to the forward.
            pooled: ``(C,)``, the mean that it returned.
            dpooled, dsecond: ``(C,)`` gradients of the pooled mean and variance.
        """
        if self.unbiased == "both":
            dsecond = dsecond * self.correction
        if self.ranks is not None:
            total = self.ranks.all_reduce(torch.cat([dpooled, dsecond]).double())
            dpooled, dsecond = (total * self.share).to(mean.dtype).chunk(2)
        else:
            dpooled, dsecond = dpooled * self.share, dsecond * self.share
        dmean = torch.addcmul(dpooled, mean - pooled, dsecond, value=2)
        return dmean, dsecond if self.inner == 1.0 else dsecond * self.inner


# torch.compile would put its own collective in the place of this one, without a gradient.
@not_compiled
def pool_ranks(
    mean: Tensor, var: Tensor, positions: int, ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance ``(C,)`` over all ranks' positions, and how many those are: float64.

    Ranks weigh by their positions. The sums about 0 lose to cancellation what float64 has more than
    float32, and no more; and a recomputation repeats them to the last bit, which it would not about
    a running mean that has moved.
    """
    wide = mean.double()
    second = torch.addcmul(var.double(), wide, wide)
    sums = torch.cat([wide.sum(0), second.sum(0), wide.new_full((1,), mean.shape[0])]) * positions
    sums = ranks.all_reduce(sums)
    count = sums[-1].detach()
    pooled, second = (sums[:-1] / count.clamp(min=1)).chunk(2)
    return pooled, (second - pooled.square()).clamp(min=0), count
