"""Batch-Channel Normalization (BCN): per-channel normalization, then group normalization.

Reference: S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille, "Micro-Batch Training with Batch-Channel
Normalization and Weight Standardization", arXiv:1903.10520v2. Authors' code:
https://github.com/joe-siyuan-qiao/Batch-Channel-Normalization
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .affine import normalize, recomputing
from .closed_forms import BatchChannelForm, Pool
from .ranks import PoolsOverRanks
from .recall import Recall
from .statistics import (
    RankPool,
    average_about,
    frozen,
    move_running_statistics,
    pool_batch,
    pool_channels,
    pool_ranks,
    pooled_moments,
    sum_about,
)

__all__ = ["BatchChannelNorm1d", "BatchChannelNorm2d", "BatchChannelNorm3d"]

_STATISTICS = ("estimate", "batch", "sync")
# The released code keeps this constant in the inner normalization whatever ``eps`` is.
_INNER_EPS = 1e-5


class _ChannelStatistics(nn.InstanceNorm1d):
    """The inner normalization's parameters and running statistics, named ``bn`` in checkpoints.

    It is never called. Its base class makes detectron2 count its parameters as a norm's (no weight
    decay), while the functions that convert BatchNorm layers leave it alone.
    """

    def __init__(self, num_features: int, momentum: float | None, **factory: Any) -> None:
        super().__init__(num_features, _INNER_EPS, affine=True, track_running_stats=True, **factory)
        self.momentum = momentum


class _BatchChannelNorm(PoolsOverRanks, nn.GroupNorm):
    """BCN over ``(N, C, *)``; see `BatchChannelNorm2d`."""

    _input_dims: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        statistics: str = "estimate",
        process_group: dist.ProcessGroup | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if statistics not in _STATISTICS:
            raise ValueError(
                f"statistics ({statistics!r}) must be one of {', '.join(map(repr, _STATISTICS))}"
            )
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(
                f"num_groups ({num_groups}) must divide num_features ({num_features}); "
                f"choose one of {[g for g in range(1, num_features + 1) if num_features % g == 0]}"
            )
        if statistics == "estimate" and momentum is None:
            raise ValueError("momentum must be a number with statistics='estimate', got None")
        # One affine pair a group: GroupNorm's own parameters at a width of num_groups.
        super().__init__(num_groups, num_groups, eps, device=device, dtype=dtype)
        self.num_channels = self.num_features = num_features
        self.momentum = momentum
        self.statistics = statistics
        self.process_group = process_group
        self.recall = Recall()
        self.bn = _ChannelStatistics(num_features, momentum, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        self.recall.begin()
        if input.dim() not in self._input_dims:
            raise ValueError(
                f"{type(self).__name__} expects {' or '.join(f'{d}D' for d in self._input_dims)} "
                f"input, got {input.dim()}D of shape {tuple(input.shape)}"
            )
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} was made for num_features={self.num_features} channels, "
                f"got {input.shape[1]} (shape {tuple(input.shape)})"
            )
        # How many positions a row holds; multiplied out because a tracer may not divide by N.
        positions = 1
        for size in input.shape[2:]:
            positions *= size
        return normalize(
            input,
            partial(self._rule, positions),
            self.weight,
            self.bias,
            self.bn.weight,
            self.bn.bias,
            form=self._form(positions),
        )

    def _form(self, positions: int) -> BatchChannelForm:
        """`_rule` with its gradient written out."""
        kind = "running"
        if self.training and not frozen(self, self.bn):
            if self.bn.momentum != self.momentum:  # torch 2.7 compiles anew after each assignment
                self.bn.momentum = self.momentum
            several = self.ranks.size() > 1
            if self.statistics == "sync" and several:
                kind = "ranks"
            elif self.statistics != "estimate":
                kind = "unbiased"
            elif not (several or self.recall.active or recomputing()):
                kind = "estimate"
        pool = (
            self._pool_over_ranks(positions)
            if kind == "ranks"
            else Pool(kind, self.bn, positions, partial(self._inner_statistics, positions))
        )
        return BatchChannelForm(self.num_groups, self.eps, _INNER_EPS, pool)

    def _pool_over_ranks(self, positions: int) -> Pool:
        assert self.bn.running_mean is not None
        over_ranks = RankPool(positions, self.bn.running_mean, self.ranks, self.recall)

        def compute(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            pooled_mean, pooled_var, count = over_ranks(mean, var)
            self._move_to_pooled(pooled_mean, pooled_var, count)
            return pooled_mean, pooled_var

        return Pool("ranks", self.bn, positions, compute, over_ranks.average)

    def _rule(
        self,
        positions: int,
        mean: Tensor,
        var: Tensor,
        weight: Tensor,
        bias: Tensor,
        inner_weight: Tensor,
        inner_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        center, center_var = self._inner_statistics(positions, mean, var)
        slope = inner_weight * (center_var + _INNER_EPS).rsqrt()
        # z = slope * (x - center) + inner_bias: its row statistics follow from those of x.
        z_mean = slope * (mean - center) + inner_bias
        group_mean, group_var = pool_channels(z_mean, slope.square() * var, self.num_groups)
        gain = (weight * (group_var + self.eps).rsqrt()).unsqueeze(-1)
        # (..., C) as (..., groups, C / groups), next to the (..., groups, 1) of the groups.
        slope, z_mean = (t.unflatten(-1, (self.num_groups, -1)) for t in (slope, z_mean))
        offset = gain * (z_mean - group_mean.unsqueeze(-1)) + bias.unsqueeze(-1)
        return (gain * slope).flatten(-2), offset.flatten(-2)

    def pools(self) -> bool:
        return self.statistics != "batch"

    def _inner_statistics(self, positions: int, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and not frozen(self, self.bn):
            if self.bn.momentum != self.momentum:  # torch 2.7 compiles anew after each assignment
                self.bn.momentum = self.momentum
            if self.statistics != "estimate":
                return self._batch_statistics(positions, mean, var)
            used = self.recall.find(mean, positions)
            if used is not None:
                return used[0], used[1]
            self._move_estimates(positions, mean.detach(), var.detach())
            self.recall.keep(mean, positions, *self._running(mean.dtype))
        return self._running(mean.dtype)

    def _running(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        running_mean, running_var = self.bn.running_mean, self.bn.running_var
        assert running_mean is not None and running_var is not None
        return running_mean.to(dtype), running_var.to(dtype)

    @torch.no_grad()
    def _move_estimates(self, positions: int, mean: Tensor, var: Tensor) -> None:
        # The paper's order: the variance is taken about the estimate from before the move.
        old = self.bn.running_mean
        assert old is not None
        if self.ranks.size() > 1 and not recomputing():
            sums = sum_about(mean, var, positions, old.double())
            self.ranks.take_turn(differentiable=False)
            self.ranks.add_up(sums)
            self.absorb(sums)
            return
        count = mean.shape[0]
        second = (var + (mean - old).square()).sum(0) / max(count, 1)
        move_running_statistics(self.bn, mean.sum(0) / max(count, 1), second, count * positions)

    def _batch_statistics(self, positions: int, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        if self.statistics == "sync" and self.ranks.size() > 1:
            assert self.bn.running_mean is not None
            pooled_mean, pooled_var, total = pool_ranks(
                mean, var, positions, self.bn.running_mean, self.ranks, self.recall
            )
            self._move_to_pooled(pooled_mean, pooled_var, total)
        else:
            pooled_mean, pooled_var = pool_batch(mean, var)
            count = mean.shape[0] * positions
            unbias = count / max(count - 1, 1)
            move_running_statistics(self.bn, pooled_mean, pooled_var * unbias, count)
        return pooled_mean, pooled_var

    def _move_to_pooled(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        unbias = (count / (count - 1).clamp(min=1)).to(var.dtype)
        move_running_statistics(self.bn, mean, var * unbias, count)

    def absorb(self, sums: Tensor) -> None:
        old, self.bn.momentum = self.bn.running_mean, self.momentum
        assert old is not None
        if self.statistics == "estimate":
            offset, second, count = average_about(sums)
            move_running_statistics(self.bn, old.double() + offset, second, count)
        else:
            self._move_to_pooled(*pooled_moments(sums, old))

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, "
            f"momentum={self.momentum}, statistics={self.statistics!r}"
        )


class BatchChannelNorm1d(_BatchChannelNorm):
    """Batch-Channel Normalization of ``(N, C)`` or ``(N, C, L)``; see `BatchChannelNorm2d`."""

    _input_dims = (2, 3)


class BatchChannelNorm2d(_BatchChannelNorm):
    r"""Batch-Channel Normalization of ``(N, C, H, W)``.

    .. math:: z = \frac{x - \hat\mu_c}{\sqrt{\hat\sigma_c^2 + 10^{-5}}} \cdot w_c + b_c, \qquad
              y = \frac{z - \mu_g}{\sqrt{\sigma_g^2 + eps}} \cdot W_g + B_g

    with the mean and biased variance of z over each channel group g of each sample. Both steps
    are one affine map of x, so BCN costs the two reads of group normalization.

    ``statistics`` says where the channel statistics come from while training:

    * ``"estimate"`` (micro-batch BCN, the paper's algorithm 1): running estimates, moved toward the
      batch *before* they are used; no gradient flows through them. Works at one image a process.
      With several processes the batch is that of all ranks of ``process_group``, so that their
      estimates agree: one all_reduce of 2C + 1 numbers forward.
    * ``"batch"``: batch statistics with gradient, as in BatchNorm.
    * ``"sync"``: batch statistics over all ranks of ``process_group``; one all_reduce of 2C + 1
      numbers forward and one of 2C backward. In a single process it is ``"batch"``.

    Evaluation, and training with all parameters frozen, uses the running statistics and issues no
    collective. Where ranks pool, all must run the layer equally often, unless the model was given
    to `prepare_sync_norms`. Not for ``"batch"`` with one image a process: training then sees
    instance statistics and evaluation does not.

    Args:
        num_features: C.
        num_groups: groups of the channel normalization; divides C. One affine pair a group.
        eps: added to the group variance. The inner normalization keeps the released 1e-5.
        momentum: the share of the *new* value in the running statistics (torch's convention).
            None averages all batches plainly; not for ``"estimate"``.
        statistics: ``"estimate"``, ``"batch"`` or ``"sync"``.
        process_group: the ranks to pool over; the default group if None.

    Attributes:
        weight, bias: ``(num_groups,)``, the channel normalization's affine pair.
        bn.weight, bn.bias, bn.running_mean, bn.running_var: ``(C,)``, the inner normalization's.
            ``running_var`` is biased in ``"estimate"``, unbiased (as BatchNorm's) otherwise.

    Raises:
        ValueError: ``num_groups`` does not divide C, an unknown ``statistics``, ``momentum=None``
            with estimates, a ``process_group`` without this rank, input of another dimension or
            channel count.

    Example::

        >>> norm = BatchChannelNorm2d(64)
        >>> norm(torch.randn(1, 64, 32, 48)).shape
        torch.Size([1, 64, 32, 48])
    """

    _input_dims = (4,)


class BatchChannelNorm3d(_BatchChannelNorm):
    """Batch-Channel Normalization of ``(N, C, D, H, W)``; see `BatchChannelNorm2d`."""

    _input_dims = (5,)
