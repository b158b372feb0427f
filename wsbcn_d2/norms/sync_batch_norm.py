"""Batch normalization over the positions of all ranks, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .normalize import check_input, normalize, normalize_by_running
from .pooling import BatchPool, row_length
from .running_stats import BatchAveraged, frozen
from .sync import PoolsOverRanks

__all__ = ["BatchNormRule", "SyncBatchNorm2d"]


@dataclass
class BatchNormRule:
    """BN's rule; see `normalize`. It takes the mean and variance of the batch."""

    eps: float

    def __call__(
        self, mean: Tensor, var: Tensor, center: Tensor, spread: Tensor, *affine: Tensor
    ) -> tuple[Tensor, Tensor]:
        weight, bias = affine
        scale = weight * (spread + self.eps).rsqrt()
        return scale, torch.addcmul(bias, mean - center, scale)


class SyncBatchNorm2d(PoolsOverRanks, BatchAveraged, nn.InstanceNorm2d):
    """`torch.nn.SyncBatchNorm` of ``(N, C, H, W)`` that runs on CPU too.

    The same parameters, running statistics (of unbiased variance) and results, so checkpoints of
    either load into the other. Ranks weigh by their positions: images of any size, and empty
    batches, give the statistics of all positions, where detectron2's ``NaiveSyncBatchNorm`` takes
    ranks or images to be equally large. Every rank must run every layer.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: the share of the *new* value in the running statistics; None averages all batches.
        process_group: the ranks to pool over; all of them if None.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        process_group: dist.ProcessGroup | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, True, True, device, dtype)  # type: ignore[arg-type]
        self.process_group = process_group

    def averaged_module(self) -> nn.Module | None:
        return self

    def forward(self, input: Tensor) -> Tensor:
        check_input(self, input)
        if not self.training or frozen(self):
            return normalize_by_running(input, self)
        pool = BatchPool(self, row_length(input), self.ranks, unbiased="running")
        return normalize(input, BatchNormRule(self.eps), self.weight, self.bias, pool=pool)
