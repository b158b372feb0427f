"""The batch of an optimizer step: how processes share it, and what depends on its size."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import ConfigError
from ..norms import BatchChannelNorm

__all__ = ["BatchPlan", "correct_momentum", "plan_batch", "scale_learning_rate"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchPlan:
    """``total`` images a step = ``images_per_gpu`` × ``world_size`` × ``steps``."""

    total: int
    images_per_gpu: int
    world_size: int

    @property
    def steps(self) -> int:
        """Number of micro-batches that each process accumulates in an optimizer step."""
        return self.total // max(self.images_per_gpu * self.world_size, 1) or 1

    def __str__(self) -> str:
        return (
            f"{self.total} images an optimizer step = {self.images_per_gpu} image(s) × "
            f"{self.world_size} process(es) × {self.steps} accumulated micro-batch(es)"
        )


def plan_batch(
    total: int,
    images_per_gpu: int,
    world_size: int,
    names: tuple[str, str] = ("total_batch_size", "images_per_gpu"),
) -> BatchPlan:
    """Divide a batch among processes and micro-batches.

    Args:
        total: images in an optimizer step, over all processes.
        images_per_gpu: images in a micro-batch; 0 divides ``total`` by the number of processes, so
            that nothing is accumulated.
        world_size: number of processes.
        names: config keys of the first two, for error messages.

    Raises:
        ConfigError: the batch cannot be divided equally; the message names the nearest settings.
    """
    if total > 0 and images_per_gpu == 0 and total % world_size == 0:
        return BatchPlan(total, total // world_size, world_size)
    if total > 0 and images_per_gpu > 0 and total % (images_per_gpu * world_size) == 0:
        return BatchPlan(total, images_per_gpu, world_size)
    if images_per_gpu < 0:
        raise ConfigError(f"{names[1]} ({images_per_gpu}) must be 0 (no accumulation) or positive")
    unit = max(images_per_gpu, 1) * world_size
    nearest = [f"{names[0]} " + " or ".join(map(str, _multiples_near(total, unit)))]
    if images_per_gpu > 0 and total > 0 and total % world_size == 0:
        sizes = _divisors_near(total // world_size, images_per_gpu)
        nearest.append(f"{names[1]} " + " or ".join(map(str, sizes)))
    if total > 0 and total % max(images_per_gpu, 1) == 0:
        counts = _divisors_near(total // max(images_per_gpu, 1), world_size)
        nearest.append(" or ".join(map(str, counts)) + " process(es)")
    per_gpu = f"{names[1]} ({images_per_gpu}) × " if images_per_gpu > 0 else ""
    raise ConfigError(
        f"{names[0]} ({total}) must be a positive multiple of {per_gpu}the {world_size} "
        "process(es); nearest: " + "; or ".join(nearest)
    )


def _multiples_near(value: int, unit: int) -> list[int]:
    below = value // unit * unit
    return [below, below + unit] if below > 0 else [unit]


def _divisors_near(number: int, value: int) -> list[int]:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below = [d for d in divisors if d < value][-1:]
    return below + [d for d in divisors if d > value][:1]


def scale_learning_rate(optimizer: torch.optim.Optimizer, total: int, reference: int) -> None:
    """Multiply the learning rate of every group by ``total`` / ``reference`` (the linear rule).

    To be called before a scheduler is built for the optimizer.

    Args:
        optimizer: its ``param_groups`` are changed in place.
        total: images in an optimizer step.
        reference: images in an optimizer step for which the learning rate was chosen.
    """
    for i, group in enumerate(optimizer.param_groups):
        before = group["lr"]
        group["lr"] = before * total / reference
        logger.info(
            "scale_lr: learning rate of parameter group %d: %g × %d / %d images = %g",
            *(i, before, total, reference, group["lr"]),
        )


def correct_momentum(model: nn.Module, steps: int) -> int:
    """Rescale momentum so that the averaging horizon, in images, does not depend on accumulation.

    Running statistics are updated once per micro-batch. With a momentum of
    1 − (1 − momentum)^(1 / steps), ``steps`` updates leave a share of (1 − momentum) of the old
    value, as a single update without accumulation does.

    Args:
        model: its BatchNorm, SN and BCN layers are changed in place, except those with a
            ``momentum`` of None.
        steps: number of accumulated micro-batches.

    Returns:
        the number of layers that were changed.
    """
    # BCN's inner layer takes its momentum from the outer one.
    inner = {m.bn for m in model.modules() if isinstance(m, BatchChannelNorm)}
    changed = 0
    for module in model.modules():
        bcn = isinstance(module, BatchChannelNorm)
        if not (bcn or (isinstance(module, _NormBase) and module.running_mean is not None)):
            continue
        momentum: Any = module.momentum
        if module in inner or momentum is None:
            continue
        module.momentum = 1 - (1 - momentum) ** (1 / steps)
        changed += 1
    return changed
