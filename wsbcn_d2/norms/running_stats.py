"""Running statistics: how they move, and the batch average that may replace them.

The batch average is that of arXiv:1907.10473, "Inference": parameters frozen, a number of training
mini-batches fed, and the means and variances that they produce in each layer averaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .modes import recomputing

__all__ = ["BatchAveraged", "frozen", "move_running_statistics", "update_batch_average"]


def frozen(*modules: nn.Module) -> bool:
    """Whether none of the modules' own parameters is trained.

    That is what detectron2's ``freeze_at`` leaves behind for a norm that is not a BatchNorm; such
    a norm uses its evaluation statistics in training too.
    """
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad:
                return False
    return True


@torch.no_grad()
def move_running_statistics(
    module: nn.Module, mean: Tensor, var: Tensor, count: int | Tensor
) -> None:
    """Move ``running_mean`` and ``running_var`` of ``module`` toward this batch's ``(C,)`` values.

    ``new = (1 - momentum) * old + momentum * batch``; ``momentum=None`` averages all batches
    plainly, as in torch. Nothing moves in the recomputation of an activation checkpoint, nor for
    an empty batch.

    Args:
        module: has ``running_mean``, ``running_var``, ``num_batches_tracked`` and ``momentum``.
        mean, var: the values to move toward.
        count: positions in the batch; a tensor if it is that of several ranks, so that no device
            synchronizes.
    """
    if recomputing() or (isinstance(count, int) and count == 0):
        return
    running_mean, running_var = module.running_mean, module.running_var
    tracked, momentum = module.num_batches_tracked, module.momentum
    assert isinstance(running_mean, Tensor) and isinstance(running_var, Tensor)
    assert isinstance(tracked, Tensor)
    seen = count > 0 if isinstance(count, Tensor) else 1
    tracked.add_(seen)
    # Made where it is used: a number brought to a GPU would wait for it.
    rate: Any = momentum if isinstance(momentum, (float, int)) else 1 / tracked.clamp(min=1)
    if isinstance(seen, Tensor):  # a number times a bool would be rounded to float32
        rate = rate * seen.to(running_mean.dtype)
    if isinstance(rate, Tensor):
        rate = rate.to(running_mean.dtype)
    running_mean.lerp_(mean.to(running_mean.dtype), rate)
    running_var.lerp_(var.to(running_var.dtype), rate)


class BatchAveraged:
    """A norm whose running statistics `update_batch_average` may replace."""

    def averaged_module(self) -> nn.Module | None:
        """The module that has the running statistics; None if they are no batch averages."""
        raise NotImplementedError


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
    norms = {}
    for module in model.modules():
        holder = module.averaged_module() if isinstance(module, BatchAveraged) else None
        if holder is not None and not frozen(module, holder):
            norms[module] = holder
    if not norms:
        return
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    momenta = {module: module.momentum for module in norms}
    modes = {module: module.training for module in model.modules()}
    averaged = ("running_mean", "running_var", "num_batches_tracked")
    ours = {id(getattr(holder, name)) for holder in norms.values() for name in averaged}
    done = False
    try:
        model.train()
        for module, holder in norms.items():
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
        _average_over_ranks(list(norms.values()))
        done = True
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
        for name, buffer in model.named_buffers():
            if not (done and id(buffer) in ours):
                buffer.copy_(buffers[name])


def _average_over_ranks(holders: list[nn.Module]) -> None:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    tensors: list[Tensor] = []
    for holder in holders:
        assert isinstance(holder.running_mean, Tensor) and isinstance(holder.running_var, Tensor)
        tensors += [holder.running_mean, holder.running_var]
    flat = torch.cat([t.double() for t in tensors])
    dist.all_reduce(flat)
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean / dist.get_world_size())
