"""Switchable Normalization synchronized over ranks (SyncSN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .pooling import BatchPool
from .switchable_norm import SwitchNorm
from .sync import PoolsOverRanks, Ranks

__all__ = ["SyncSwitchNorm", "SyncSwitchNorm1d", "SyncSwitchNorm2d", "SyncSwitchNorm3d"]


class SyncSwitchNorm(PoolsOverRanks, SwitchNorm):
    """SN whose BN statistics pool over ranks; see `SyncSwitchNorm2d`."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        statistics: Sequence[str] | None = None,
        num_groups: int = 1,
        unbiased: bool = False,
        process_group: dist.ProcessGroup | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, statistics, num_groups, unbiased, device, dtype
        )
        self.process_group = process_group

    def pools(self) -> bool:
        return "bn" in self.statistics

    def _batch_pool(self, x: Tensor, ranks: Ranks | None = None) -> BatchPool:
        return super()._batch_pool(x, self.ranks)


class SyncSwitchNorm1d(SyncSwitchNorm, nn.InstanceNorm1d):
    """SyncSN of ``(N, C)`` or ``(N, C, L)``; see `SyncSwitchNorm2d` and `SwitchNorm1d`."""

    input_dims = (2, 3)
    default_statistics = ("ln", "bn")


class SyncSwitchNorm2d(SyncSwitchNorm, nn.InstanceNorm2d):
    """`SwitchNorm2d` whose BN statistics pool over all ranks of ``process_group``.

    In training every forward issues one all_reduce of 2C + 1 numbers and every backward one of 2C,
    and the recomputation of an activation checkpoint that of its forward again; evaluation and
    frozen layers issue none, and a single process none at all. The result on W ranks equals one
    process on the joined batch, outputs and gradients, also when ranks have different N or H x W
    (ranks weigh by their positions); a rank with N = 0 takes part. Parameter gradients are local
    ones, for DistributedDataParallel to average.

    As with ``torch.nn.SyncBatchNorm`` all ranks must run the layer equally often, on an empty batch
    too: a rank that skips it leaves the others waiting.

    Args:
        process_group: the ranks to pool over; the default group if None. The others as in
            `SwitchNorm2d`.

    Raises:
        ValueError: this rank is not in ``process_group``, and as in `SwitchNorm2d`.
    """

    input_dims = (4,)


class SyncSwitchNorm3d(SyncSwitchNorm, nn.InstanceNorm3d):
    """SyncSN of ``(N, C, D, H, W)``; see `SyncSwitchNorm2d`."""

    input_dims = (5,)
