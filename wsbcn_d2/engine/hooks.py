"""Hooks of the training loop, besides detectron2's own."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .buffers import average_buffers

__all__ = ["BufferAverager", "EvalHook", "ModelEMA", "SkippedImages", "is_due"]


def is_due(iteration: int, period: int, max_iter: int) -> bool:
    """Whether a periodic action is due after an iteration; after the last one it always is.

    Args:
        iteration: index of the iteration, from 0.
        period: iterations between two actions; 0 means after the last iteration only.
        max_iter: number of iterations.
    """
    done = iteration + 1
    return done == max_iter or (period > 0 and done % period == 0)


class BufferAverager(HookBase):
    """Calls `average_buffers` before evaluations and checkpoints.

    To be registered before both, on all ranks.

    Args:
        models: modules whose buffers are averaged.
        periods: periods of the hooks that follow, in iterations; 0 means after the last one only.
    """

    def __init__(self, models: Sequence[nn.Module], periods: Sequence[int]) -> None:
        self._models = models
        self._periods = periods

    def after_step(self) -> None:
        trainer = self.trainer
        if any(is_due(trainer.iter, period, trainer.max_iter) for period in self._periods):
            for model in self._models:
                average_buffers(model)


class SkippedImages(HookBase):
    """Logs how many bad images all ranks' loaders have skipped since they started.

    To be registered before the writers.

    Args:
        period: iterations between two log lines.
    """

    def __init__(self, period: int) -> None:
        self._period = period

    def after_step(self) -> None:
        if is_due(self.trainer.iter, self._period, self.trainer.max_iter):
            skipped = getattr(self.trainer.data_loader, "skipped", 0)
            total = sum(comm.all_gather(skipped))
            self.trainer.storage.put_scalar("skipped_images", total, smoothing_hint=False)


class EvalHook(hooks.EvalHook):
    """detectron2's ``EvalHook``, except that a training that failed is not evaluated."""

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            return
        super().after_train()


class ModelEMA(HookBase):
    """Exponential moving average of a model's weights and floating buffers, once per iteration.

    At iteration i the decay is min(decay, (1 + i) / (10 + i)): with the full decay from the start,
    the random initial weights would dominate for about 1 / (1 − decay) iterations.

    Args:
        model: the trained model, not wrapped in DistributedDataParallel.
        decay: weight of the old average, in [0, 1).

    Attributes:
        averaged: torch's ``AveragedModel``, whose ``module`` is evaluated and state dict saved.

    Raises:
        ValueError: ``decay`` outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay ({decay}) must be in [0, 1)")
        self._model = model
        self._decay = decay
        self.averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self.averaged.requires_grad_(False).eval()

    def _average(self, old: Sequence[Tensor], new: Sequence[Tensor], _: Tensor | int) -> None:
        iteration = self.trainer.iter
        decay = min(self._decay, (1 + iteration) / (10 + iteration))
        if old[0].is_floating_point():
            get_ema_multi_avg_fn(decay)(old, new, 0)
            return
        # Counters and flags have no average.
        for target, source in zip(old, new, strict=True):
            target.copy_(source)

    def after_step(self) -> None:
        self.averaged.update_parameters(self._model)
