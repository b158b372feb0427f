"""State besides weights and optimizer that makes a resumed run equal an uninterrupted one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import nn

from ..config import BatchPlan
from .hooks import is_due

__all__ = ["DataPosition", "RankStates"]

logger = logging.getLogger(__name__)


# What it means for a resumed run that these are not as before.
_CHANGED = {
    "seed": "The run began with seed %(before)d and goes on with %(now)d: from here on another "
    "order of the images, other augmentations and samplings",
    "total_batch_size": "The run began with %(before)d images a step and goes on with %(now)d, "
    "from the same image (position %(position)d): iterations, learning rate and schedule now stand "
    "for another number of images",
    "images_per_gpu": "The run began with %(before)d image(s) a micro-batch and goes on with "
    "%(now)d: the same images and augmentations, but other samplings, and other statistics and "
    "loss normalizers where they are a micro-batch's",
    "world_size": "The run began on %(before)d process(es) and goes on on %(now)d: the same "
    "images, augmentations and samplings in each step. No longer exact: the order in which "
    "floating-point sums over micro-batches are taken, and what each process keeps to itself "
    "(running statistics, RetinaNet's and FCOS's loss normalizers), which starts from the "
    "processes' average",
}


class DataPosition(HookBase):
    """Position of a run in its sequence of samples, saved as the state of this hook.

    Args:
        plan: how this run divides its batch.

    Attributes:
        seed: seed of the run, equal on all ranks.
        position: position of the first sample of the next optimizer step.
        saved: state in the checkpoint; empty for a new run or an older checkpoint.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self.seed = -1
        self.position = 0
        self.num_samples = 0
        self.saved: dict[str, int] = {}

    def after_step(self) -> None:
        self.position += self._plan.total

    def state_dict(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "position": self.position,
            "total_batch_size": self._plan.total,
            "images_per_gpu": self._plan.images_per_gpu,
            "world_size": self._plan.world_size,
            "num_samples": self.num_samples,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.saved = dict(state)

    def begin(self, seed: int, start_iter: int) -> None:
        """Set seed and position. All ranks must call it.

        Args:
            seed: the config's; if negative, the checkpoint's is used, or one drawn on rank 0.
            start_iter: number of iterations completed in the checkpoint.
        """
        saved, plan = self.saved, self._plan
        drawn = saved["seed"] if saved else comm.shared_random_seed()
        self.seed = seed if seed >= 0 else drawn
        self.position = saved.get("position", start_iter * plan.total)
        if not saved:
            if start_iter > 0:
                logger.warning(
                    "The checkpoint does not say how far its run was in the data: taking %d steps "
                    "of %d images. What follows is not what that run would have done",
                    *(start_iter, plan.total),
                )
            return
        now = self.state_dict()
        for key, message in _CHANGED.items():
            if now[key] != saved[key]:
                logger.warning(message, {**now, "before": saved[key], "now": now[key]})

    def check_dataset(self, num_samples: int) -> None:
        """Compare the dataset's size with the checkpoint's."""
        self.num_samples = num_samples
        before = self.saved.get("num_samples", num_samples)
        if before != num_samples:
            logger.warning(
                "The dataset had %d images when the run began, and now has %d: from here on "
                "another order of the images",
                *(before, num_samples),
            )


class RankStates(HookBase):
    """State that differs between ranks and is not in the weights, saved as the state of this hook.

    It consists of the loss normalizers of RetinaNet and FCOS (averages of the number of positive
    anchors, kept in a plain attribute) and, in a checkpoint outside the period, of the buffers:
    such a checkpoint holds their average over the ranks, but an uninterrupted run would continue
    with each rank's own.

    Args:
        models: the trained model, and its moving average if there is one.
        period: iterations between two checkpoints.
    """

    def __init__(self, models: Sequence[nn.Module], period: int) -> None:
        self._models = models
        self._period = period
        self._states: list[dict[str, Any]] = []

    def after_step(self) -> None:
        if is_due(self.trainer.iter, self._period, self.trainer.max_iter):
            self.gather(buffers=False)

    def gather(self, buffers: bool) -> None:
        """Gather the states of all ranks, with or without buffers. All ranks must call it."""
        state: dict[str, Any] = {"normalizers": self._normalizers()}
        if buffers and comm.get_world_size() > 1:
            state["buffers"] = [
                {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()}
                for model in self._models
            ]
        self._states = comm.gather(state)

    def _normalizers(self) -> dict[str, float]:
        return {
            name: float(module.loss_normalizer)
            for name, module in self._models[0].named_modules()
            if isinstance(module, DenseDetector) and hasattr(module, "loss_normalizer")
        }

    def state_dict(self) -> dict[str, Any]:
        return {"states": self._states} if self._states else {}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        states = state["states"]
        same = len(states) == comm.get_world_size()
        own = states[comm.get_rank()] if same else {}
        modules = dict(self._models[0].named_modules())
        for name in states[0]["normalizers"]:
            values = [s["normalizers"][name] for s in ([own] if same else states)]
            modules[name].loss_normalizer = sum(values) / len(values)
        for model, saved in zip(self._models, own.get("buffers", []), strict=False):
            for name, buffer in model.named_buffers():
                buffer.copy_(saved[name])
