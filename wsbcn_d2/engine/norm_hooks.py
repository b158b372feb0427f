"""Hooks for switchable norms: the growing radius of SSN, and SN's batch average."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from ..data.seeding import seeded
from ..norms import SparseSwitchNorm, update_batch_average
from ..norms.sparsemax import circumradius

__all__ = ["BatchAverage", "SparsityRamp"]

logger = logging.getLogger(__name__)


class SparsityRamp(HookBase):
    """Increases the radius of all sparse SN layers linearly, from 0 to the circumradius.

    Without it, SSN remains SN with sparsemax. Models without such layers are not changed.

    Reference: arXiv:1903.03793, Sec. 3.2.

    Args:
        model: module whose SSN layers are changed.
        end: fraction of the training after which all ratios are one-hot, in (0, 1]. During the rest
            of it the weights adapt to these ratios.

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
            layer.set_radius(share * circumradius(len(layer.statistics)))


class BatchAverage(HookBase):
    """SN's batch average: in every evaluation, and for good after the last step.

    Registered before the last step's checkpoint, on all ranks. An evaluation before it gets a copy
    of the model, from `for_evaluation`: the training goes on as if there had been none.

    Reference: arXiv:1907.10473, "Inference" and Fig. 6.

    Args:
        model: not wrapped in DistributedDataParallel.
        num_iters: number of batches per rank (K in the paper).
        build_loader: builds the loader of these batches, when they are needed.
    """

    def __init__(
        self,
        model: nn.Module,
        num_iters: int,
        build_loader: Callable[[], Iterable[Any]],
    ) -> None:
        self._model = model
        self._num_iters = num_iters
        self._build_loader = build_loader

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self._average(self._model)

    def for_evaluation(self) -> nn.Module:
        """The model with batch averages: itself once trained, a copy before. All ranks call it."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            return self._model
        model = copy.deepcopy(self._model)
        self._average(model)
        return model

    def _average(self, model: nn.Module) -> None:
        logger.info("Averaging batch statistics over %d batches a process", self._num_iters)
        iteration = self.trainer.iter
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        # Of their own, as neither losses nor samplings on the way are the run's.
        with (
            EventStorage(iteration),
            torch.random.fork_rng(devices),
            seeded("batch average", iteration, comm.get_rank()),
        ):
            update_batch_average(model, self._build_loader(), self._num_iters)
