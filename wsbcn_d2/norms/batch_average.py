"""The paper's batch average: running statistics averaged plainly over training mini-batches.

Reference: arXiv:1806.10779, "Inference" in Sec. 3: parameters frozen, a number of mini-batches
fed, the means and variances that they produce in each layer averaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batch_channel_norm import _BatchChannelNorm
from .ranks import Ranks
from .statistics import frozen
from .switchable_norm import _SwitchNorm

__all__ = ["update_batch_average"]

_AVERAGED = ("running_mean", "running_var", "num_batches_tracked")


def _owners(model: nn.Module) -> list[nn.Module]:
    """The modules whose ``running_mean`` and ``running_var`` hold batch averages."""

    def averages(module: nn.Module) -> bool:
        if isinstance(module, _BatchChannelNorm):
            return module.statistics != "estimate" and not frozen(module, module.bn)
        return (
            isinstance(module, _SwitchNorm)
            and module.running_mean is not None
            and not frozen(module)
        )

    return [module for module in model.modules() if averages(module)]


@torch.no_grad()
def update_batch_average(model: nn.Module, data_loader: Iterable[Any], num_iters: int) -> None:
    """Replace the running statistics by plain averages over ``num_iters`` training batches.

    Acts on SN layers with a ``"bn"`` statistic and on BCN layers in ``"batch"`` and ``"sync"``
    mode; frozen ones keep what they have. The model runs in training mode without gradients;
    afterwards its mode, all parameters and every other buffer (the running statistics of stock
    BatchNorms too) are as before. With several processes, to be called on all of them, the averages
    are averaged over ranks. If the loader runs out or a batch fails, the old statistics come back.

    Args:
        model: called as ``model(batch)``.
        data_loader: yields at least ``num_iters`` batches as training does.
        num_iters: K, at least 1. The paper used 50k images of ImageNet.

    Raises:
        ValueError: ``num_iters`` < 1, or the loader yields fewer batches.
    """
    if num_iters < 1:
        raise ValueError(f"num_iters ({num_iters}) must be at least 1")
    owners = _owners(model)
    if not owners:
        return
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    momenta = [module.momentum for module in owners]
    modes = {module: module.training for module in model.modules()}
    holders = [m.bn if isinstance(m, _BatchChannelNorm) else m for m in owners]
    ours = {id(getattr(m, name)) for m in holders for name in _AVERAGED}
    done = False
    try:
        model.train()
        for module, holder in zip(owners, holders, strict=True):
            module.momentum = None  # type: ignore[assignment]
            holder.reset_running_stats()  # type: ignore[operator]
        fed = 0
        for batch in itertools.islice(data_loader, num_iters):
            model(batch)
            fed += 1
        if fed < num_iters:
            raise ValueError(
                f"data_loader yielded {fed} batches, fewer than num_iters ({num_iters})"
            )
        _average_over_ranks(holders)
        done = True
    finally:
        for module, momentum in zip(owners, momenta, strict=True):
            module.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
        for name, buffer in model.named_buffers():
            if not (done and id(buffer) in ours):
                buffer.copy_(buffers[name])


def _average_over_ranks(holders: list[nn.Module]) -> None:
    world_size = Ranks().size()
    if world_size == 1:
        return
    tensors: list[Tensor] = []
    for holder in holders:
        assert isinstance(holder.running_mean, Tensor) and isinstance(holder.running_var, Tensor)
        tensors += [holder.running_mean, holder.running_var]
    flat = torch.cat([t.double() for t in tensors])
    dist.all_reduce(flat)
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean / world_size)
