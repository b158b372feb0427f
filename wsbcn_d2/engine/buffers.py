"""Averaging running statistics over the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

__all__ = ["average_buffers"]

_STATISTICS = ("running_mean", "running_var")
_COUNTER = "num_batches_tracked"


@torch.no_grad()
def average_buffers(model: nn.Module) -> int:
    """Average the running means and variances of ``model`` over the ranks, in place.

    detectron2 trains with ``broadcast_buffers=False``, so the running statistics of a rank depend
    on its own images only: each rank would evaluate a slightly different model, and a checkpoint
    would hold those of rank 0. Counters of batches, which differ where some ranks had empty
    batches, are set to their maximum. Other buffers (anchors, flags) are left alone.

    All ranks must call it: it takes one ``all_reduce`` for all means and variances and one for all
    counters. Buffers that are equal on all ranks keep their exact values. With a single process it
    does nothing.

    Returns:
        the number of means and variances that were averaged.
    """
    world_size = comm.get_world_size()
    if world_size == 1:
        return 0
    named = [(name.rpartition(".")[2], buffer) for name, buffer in model.named_buffers()]
    statistics = [b for name, b in named if name in _STATISTICS and b.is_floating_point()]
    counters = [b for name, b in named if name == _COUNTER]
    # The float64 sum of equal float32 numbers is exact, and so is its quotient.
    _reduce(statistics, torch.float64, dist.ReduceOp.SUM, world_size)
    _reduce(counters, torch.int64, dist.ReduceOp.MAX, 1)
    return len(statistics)


def _reduce(
    buffers: list[Tensor], dtype: torch.dtype, op: dist.ReduceOp.RedOpType, divisor: int
) -> None:
    if not buffers:
        return
    flat = torch.cat([buffer.reshape(-1).to(dtype) for buffer in buffers])
    dist.all_reduce(flat, op)
    if divisor != 1:
        flat /= divisor
    for buffer, value in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(value.view_as(buffer))
