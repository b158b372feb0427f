"""What switchable norms need from the training loop: a radius that grows, and averages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from torch import nn

from ..norms import SparseSwitchNorm, update_batch_average

__all__ = ["BatchAverage", "SparsityRamp"]

logger = logging.getLogger(__name__)


class SparsityRamp(HookBase):
    """The radius of all sparse SN layers, from 0 at the start to the circumradius, linearly.

    Without it SSN stays sparsemax's SN. Does nothing to a model without such layers.

    Reference: arXiv:1903.03793, Sec. 3.2.

    Args:
        model: whose layers.
        end: share of the training after which all ratios are one-hot, in (0, 1]. The rest of the
            training then adapts the weights to them.

    Raises:
        ValueError: ``end`` outside (0, 1].
    """

    def __init__(self, model: nn.Module, end: float = 1.0) -> None:
        if not 0 < end <= 1:
            raise ValueError(f"end ({end}) must be in (0, 1]")
        self._layers = [
            module for module in model.modules() if isinstance(module, SparseSwitchNorm)
        ]
        self._end = end

    def before_step(self) -> None:
        # From the iteration alone, so that a resumed run has the same radius. The last step of
        # the ramp has the full radius, also when that is the last step of all.
        steps = max(1, round(self._end * self.trainer.max_iter) - 1)
        share = min(1.0, self.trainer.iter / steps)
        for layer in self._layers:
            count = len(layer.statistics)
            layer.set_radius(share * ((count - 1) / count) ** 0.5)


class BatchAverage(HookBase):
    """`update_batch_average` after the last step, before its evaluation and checkpoint.

    Registered before both, on all ranks.

    Args:
        model: not wrapped in DistributedDataParallel.
        num_iters: K, batches a rank.
        build_loader: makes the loader of those batches when they are wanted.
    """

    def __init__(
        self,
        model: nn.Module,
        num_iters: int,
        build_loader: Callable[[], Iterable[list[dict[str, Any]]]],
    ) -> None:
        self._model = model
        self._num_iters = num_iters
        self._build_loader = build_loader

    def after_step(self) -> None:
        if self.trainer.iter + 1 < self.trainer.max_iter:
            return
        logger.info("Averaging batch statistics over %d batches a process", self._num_iters)
        # A storage of its own: the losses that the model computes on the way are not the run's.
        with EventStorage(self.trainer.iter):
            update_batch_average(self._model, self._build_loader(), self._num_iters)
