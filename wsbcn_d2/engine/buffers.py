"""One set of running statistics for all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

__all__ = ["average_buffers"]

_STATISTICS = ("running_mean", "running_var")


@torch.no_grad()
def average_buffers(model: nn.Module) -> int:
    """Average the running means and variances of ``model`` over the ranks, in place.

    detectron2 trains with ``broadcast_buffers=False``, so each rank follows its own images: each
    would evaluate a slightly different model, and the checkpoint would hold rank 0's. The other
    buffers (counters, anchors, fixed flags) are left alone.

    Every rank must call it: one ``all_reduce`` for each floating type among the buffers, of all of
    them together. With one process it does nothing.

    Returns:
        how many buffers were averaged.
    """
    world_size = comm.get_world_size()
    if world_size == 1:
        return 0
    buffers = [
        buffer
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in _STATISTICS and buffer.is_floating_point()
    ]
    for dtype in sorted({buffer.dtype for buffer in buffers}, key=str):
        group = [buffer for buffer in buffers if buffer.dtype == dtype]
        flat = torch.cat([buffer.reshape(-1) for buffer in group])
        dist.all_reduce(flat)
        flat /= world_size
        for buffer, mean in zip(group, flat.split([b.numel() for b in group]), strict=True):
            buffer.copy_(mean.view_as(buffer))
    return len(buffers)
