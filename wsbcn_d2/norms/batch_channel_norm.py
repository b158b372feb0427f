"""Batch-Channel Normalization (BCN): per-channel normalization, then group normalization.

Reference: S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille, "Rethinking Normalization and Elimination
Singularity in Neural Networks", arXiv:1911.09738. Authors' code:
https://github.com/joe-siyuan-qiao/Batch-Channel-Normalization
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .modes import may_be_recomputed, recomputing
from .normalize import check_input, normalize
from .pooling import (
    BatchPool,
    Pool,
    RunningPool,
    pool_batch,
    pool_channels,
    pool_ranks,
    row_length,
)
from .running_stats import BatchAveraged, frozen, move_running_statistics
from .sync import PoolsOverRanks, Ranks
from .used_estimates import UsedEstimates

__all__ = [
    "BatchChannelNorm",
    "BatchChannelNorm1d",
    "BatchChannelNorm2d",
    "BatchChannelNorm3d",
    "BatchChannelRule",
]

_STATISTICS = ("estimate", "batch", "sync")
# The released code keeps this constant in the inner normalization whatever ``eps`` is.
_INNER_EPS = 1e-5


@dataclass
class BatchChannelRule:
    """BCN's rule; see `normalize`. It takes a pool's mean and variance of channels.

    Its parameters are the groups' weight, bias ``(num_groups,)`` and the channels' ``(C,)``.

    Attributes:
        num_groups: G.
        eps, inner_eps: of the channel and of the inner normalization.
        from_batch: whether the pooled statistics have a gradient.
    """

    num_groups: int
    eps: float
    inner_eps: float = _INNER_EPS
    from_batch: bool = False
    fused = "batch_channel"  # its kernels: `kernels.triton_batch_channel`

    def apply(
        self,
        x: Tensor,
        center: Tensor,
        center_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        inner_weight: Tensor,
        inner_bias: Tensor,
    ) -> Tensor:
        """BCN in torch's operators: batch normalization by given statistics, then groups."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        if self.from_batch:  # torch's batch norm has no gradient for given statistics
            slope = inner_weight * (center_var + self.inner_eps).rsqrt()
            z = torch.addcmul(inner_bias.view(shape), x - center.view(shape), slope.view(shape))
        else:
            z = F.batch_norm(x, center, center_var, inner_weight, inner_bias, eps=self.inner_eps)
        width = x.shape[1] // self.num_groups
        weight, bias = (t.repeat_interleave(width) for t in (weight, bias))
        # Not F.group_norm, which refuses a group of one number.
        return torch.group_norm(z, self.num_groups, weight, bias, self.eps)

    def __call__(
        self,
        mean: Tensor,
        var: Tensor,
        center: Tensor,
        center_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        inner_weight: Tensor,
        inner_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        slope = inner_weight * (center_var + self.inner_eps).rsqrt()
        # z = slope * (x - center) + inner_bias: its row statistics follow from those of x.
        z_mean = torch.addcmul(inner_bias, mean - center, slope)
        group_mean, group_var = pool_channels(z_mean, slope.square() * var, self.num_groups)
        gain = (weight * (group_var + self.eps).rsqrt()).unsqueeze(-1)
        # (..., C) as (..., groups, C / groups), next to the (..., groups, 1) of the groups.
        slope, z_mean = (t.unflatten(-1, (self.num_groups, -1)) for t in (slope, z_mean))
        offset = torch.addcmul(bias.unsqueeze(-1), z_mean - group_mean.unsqueeze(-1), gain)
        return (gain * slope).flatten(-2), offset.flatten(-2)


class EstimatePool(RunningPool):
    """BCN's estimates, moved toward the batch of all ranks first; no gradient through them.

    Args:
        module: that has the estimates.
        positions: L.
        ranks: one all_reduce of 2C + 1 numbers, where there are several.
        used: what earlier forwards used, for their recomputation.
    """

    def __init__(
        self, module: nn.Module, positions: int, ranks: Ranks, used: UsedEstimates
    ) -> None:
        super().__init__(module)
        self.positions, self.ranks, self.used = positions, ranks, used
        # Asked here: inside an autograd function gradients are always off.
        self.remembers = may_be_recomputed()

    @property
    def fused(self) -> str | None:
        apart = self.ranks.size() == 1 and not recomputing() and not self.remembers
        return "estimate" if apart else None

    def moves(self) -> bool:
        """Whether this forward moves the estimates."""
        return True

    def running_correction(self, samples: int) -> float:
        """The estimates are biased."""
        return 1.0

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        return self.used.once(mean, var, lambda: self._moved(mean, var), self.remembers)

    def _moved(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        # The paper's order: the variance is taken about the estimate from before the move.
        old = self.module.running_mean
        assert isinstance(old, Tensor)
        count: int | Tensor
        with torch.no_grad():
            if self.ranks.size() > 1:
                pooled, second, count = pool_ranks(mean, var, self.positions, self.ranks)
            else:
                pooled, second = pool_batch(mean, var)
                count = mean.shape[0] * self.positions
            about = second + (pooled - old).square()
            move_running_statistics(self.module, pooled, about, count)
            return self.running(mean.dtype, copy=True)


class _ChannelStatistics(nn.InstanceNorm1d):
    """The inner normalization's parameters and running statistics, named ``bn`` in checkpoints.

    It is never called. Its base class makes detectron2 count its parameters as a norm's (no weight
    decay), while the functions that convert BatchNorm layers leave it alone.
    """

    def __init__(self, num_features: int, momentum: float | None, **factory: Any) -> None:
        super().__init__(num_features, _INNER_EPS, affine=True, track_running_stats=True, **factory)
        self.momentum = momentum


class BatchChannelNorm(PoolsOverRanks, BatchAveraged, nn.GroupNorm):
    """BCN over ``(N, C, *)``; see `BatchChannelNorm2d`."""

    input_dims: tuple[int, ...]

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
        self.bn = _ChannelStatistics(num_features, momentum, device=device, dtype=dtype)
        self._used_estimates = UsedEstimates("BatchChannelNorm")

    def forward(self, input: Tensor) -> Tensor:
        check_input(self, input, self.input_dims)
        pool = self._pool(input)
        return normalize(
            input,
            BatchChannelRule(self.num_groups, self.eps, from_batch=pool.differentiable),
            self.weight,
            self.bias,
            self.bn.weight,
            self.bn.bias,
            pool=pool,
        )

    def _pool(self, x: Tensor) -> Pool:
        if not self.training or frozen(self, self.bn):
            return RunningPool(self.bn)
        positions = row_length(x)
        if self.bn.momentum != self.momentum:  # torch compiles anew after an assignment
            self.bn.momentum = self.momentum
        if self.statistics == "estimate":
            return EstimatePool(self.bn, positions, self.ranks, self._used_estimates)
        ranks = self.ranks if self.statistics == "sync" else None
        return BatchPool(self.bn, positions, ranks, unbiased="running")

    def pools(self) -> bool:
        return self.statistics != "batch"

    def averaged_module(self) -> nn.Module | None:
        return None if self.statistics == "estimate" else self.bn

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, "
            f"momentum={self.momentum}, statistics={self.statistics!r}"
        )


class BatchChannelNorm1d(BatchChannelNorm):
    """Batch-Channel Normalization of ``(N, C)`` or ``(N, C, L)``; see `BatchChannelNorm2d`."""

    input_dims = (2, 3)


class BatchChannelNorm2d(BatchChannelNorm):
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
    collective. Where ranks pool, all must run the layer equally often, on an empty batch too. The
    recomputation of an activation checkpoint uses the estimates of its first forward, found by the
    row statistics to the last bit, and raises where they differ. Not for ``"batch"`` with one image
    a process: training then sees instance statistics and evaluation does not.

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

    input_dims = (4,)


class BatchChannelNorm3d(BatchChannelNorm):
    """Batch-Channel Normalization of ``(N, C, D, H, W)``; see `BatchChannelNorm2d`."""

    input_dims = (5,)
