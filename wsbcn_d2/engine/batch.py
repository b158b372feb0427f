"""The batch of an optimizer step: how processes carry it out, and what depends on its size."""

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
        """Micro-batches that each process accumulates in an optimizer step."""
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
    """Share a batch out.

    Args:
        total: images of an optimizer step, over all processes.
        images_per_gpu: images of a micro-batch; 0 for as many as need no accumulation.
        world_size: processes.
        names: of the first two in the config, for the message.

    Raises:
        ConfigError: it cannot be shared out equally; the message has the nearest settings.
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
    """The linear rule: every group's learning rate times ``total`` / ``reference``, logged.

    To be called before a scheduler is made for the optimizer.
    """
    for i, group in enumerate(optimizer.param_groups):
        before = group["lr"]
        group["lr"] = before * total / reference
        logger.info(
            "scale_lr: learning rate of parameter group %d: %g × %d / %d images = %g",
            *(i, before, total, reference, group["lr"]),
        )


def correct_momentum(model: nn.Module, steps: int) -> int:
    """Slow the running statistics of ``model`` down to their pace at one forward a step.

    They move once a micro-batch. With a share of 1 − (1 − momentum)^(1 / steps) of the new value,
    ``steps`` micro-batches together leave (1 − momentum) of the old one, as one forward does: the
    horizon in images stays the same.

    Args:
        model: its BatchNorms, SN and BCN layers are changed; a ``momentum`` of None stays.
        steps: accumulated micro-batches.

    Returns:
        how many layers were changed.
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
