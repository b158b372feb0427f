"""The training step: detectron2's, with accumulation, mixed precision and a check of the losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..data.seeding import seed_all
from ..errors import UserError

__all__ = ["NonFiniteLossError", "Trainer"]


class NonFiniteLossError(UserError, FloatingPointError):
    """A loss is infinite or NaN; the message says where, and names the usual causes."""


class Trainer(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, on CUDA and CPU.

    A step runs `forward`, `check_losses` and `backward` for each micro-batch, then `update`. Its
    loss is the mean over the micro-batches; clipping, loss scaling, hooks and logging happen once
    per step.

    Args:
        model: module that returns a dict of losses, or a single loss, for a batch; it may be
            wrapped in DistributedDataParallel.
        data_loader: yields micro-batches, which are passed to the model as they are.
        optimizer: optimizer of the model's parameters.
        accumulation_steps: micro-batches per rank and step. Ranks exchange gradients in the last
            one only.
        seed: seeds the random numbers of each forward pass with (seed, iteration, index of the
            micro-batch among those of all ranks), so that they do not depend on earlier ones; None
            leaves the generators alone.
        device: ``"cuda"`` or ``"cpu"``, for autocast.
        amp_dtype: autocast type; None trains in float32. float16 uses a loss scaler.
        clip_grad: ``max_norm`` and ``norm_type`` of ``clip_grad_norm_``; None does not clip.
        last_checkpoint: returns the path of the last checkpoint, for error messages.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        accumulation_steps: int = 1,
        seed: int | None = None,
        device: str = "cuda",
        amp_dtype: torch.dtype | None = None,
        clip_grad: dict[str, Any] | None = None,
        last_checkpoint: Callable[[], str] = lambda: "",
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        self.device_type = device.partition(":")[0]
        self.amp_dtype = amp_dtype
        self.clip_grad = clip_grad
        self.last_checkpoint = last_checkpoint
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16
        )

    def run_step(self) -> None:
        """One iteration. Raises NonFiniteLossError, before anything changes, as `check_losses`."""
        if not self.model.training:
            raise RuntimeError("the model is in eval mode; a hook did not restore train mode")
        data_time = 0.0
        collected: list[dict[str, Tensor]] = []
        self.optimizer.zero_grad()
        with _StepMeans(get_event_storage()) as scalars:
            for micro_batch in range(self.accumulation_steps):
                start = time.perf_counter()
                batch = next(self._data_loader_iter)
                data_time += time.perf_counter() - start
                self._seed(micro_batch)
                with self._gradient_sync(micro_batch == self.accumulation_steps - 1):
                    losses = self.forward(batch)
                    self.check_losses(losses, batch)
                    total = torch.stack([loss.reshape(()) for loss in losses.values()]).sum()
                    self.backward(total / self.accumulation_steps)
                collected.append({name: loss.detach() for name, loss in losses.items()})
        scalars.write()
        self.after_backward()
        self._write_metrics(_means(collected), data_time)
        self.update()

    def _seed(self, micro_batch: int) -> None:
        if self.seed is not None:
            # As the data is shared out: micro-batch m of the step goes to rank m mod W.
            m = micro_batch * comm.get_world_size() + comm.get_rank()
            seed_all("forward", self.seed, self.iter, m)

    def _gradient_sync(self, enabled: bool) -> AbstractContextManager[Any]:
        no_sync = getattr(self.model, "no_sync", nullcontext)
        return nullcontext() if enabled else no_sync()

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch, under autocast when mixed precision is on.

        Raises:
            NonFiniteLossError: detectron2's RPN found its own predictions not finite.
        """
        with torch.autocast(
            self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
        ):
            try:
                losses = self.model(batch)
            except FloatingPointError as error:
                # The RPN looks at its predictions before any loss leaves the model.
                before = ", ".join(
                    f"{name} {value:.6g}"
                    for name, (value, _) in get_event_storage().latest().items()
                    if "loss" in name
                )
                losses = f" not computed: {error} The step before: {before or 'see rank 0'}"
                raise self._not_finite(losses, batch) from error
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def check_losses(self, losses: Mapping[str, Tensor], batch: Any) -> None:
        """Check that the losses are finite, before they reach the weights.

        Args:
            losses: losses of a micro-batch, by name.
            batch: the micro-batch, whose image ids are named.

        Raises:
            NonFiniteLossError: with the iteration, the image ids, the losses and the last
                checkpoint. The weights are those of the previous step.
        """
        values = torch.stack([loss.detach().float().reshape(()) for loss in losses.values()])
        if values.isfinite().all():
            return
        table = "\n".join(
            f"    {name}: {value:.6g}{'' if math.isfinite(value) else '   <-- not finite'}"
            for name, value in zip(losses, values.tolist(), strict=True)
        )
        raise self._not_finite(f"\n{table}", batch)

    def _not_finite(self, losses: str, batch: Any) -> NonFiniteLossError:
        records = [x for x in batch if isinstance(x, dict)] if isinstance(batch, list) else []
        ids = ", ".join(str(x.get("image_id", x.get("file_name", "?"))) for x in records)
        checkpoint = self.last_checkpoint()
        return NonFiniteLossError(
            f"the loss is not finite at iteration {self.iter}, on rank {comm.get_rank()} of "
            f"{comm.get_world_size()}\n"
            f"  image ids: {ids or 'not in the batch'}\n"
            f"  losses:{losses}\n"
            "  last checkpoint: "
            + (f"{checkpoint} (kept; --resume goes on from it)" if checkpoint else "none yet")
            + "\n"
            "  The weights were not updated with this batch. Usual causes: a learning rate that is "
            "too high or without warm-up, float16, a broken annotation."
        )

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``."""
        self.grad_scaler.scale(loss).backward()

    def update(self) -> None:
        """Clip the gradients, if asked to, and take the optimizer's step."""
        if self.clip_grad is not None:
            self.grad_scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), **self.clip_grad)
            # Under float16 the scaler skips a step whose gradients overflowed: no norm to tell.
            if norm.isfinite():
                get_event_storage().put_scalar("grad_norm", norm.item())
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def after_train(self) -> None:
        # With nothing left to train, detectron2's loop ends one too far.
        self.iter: int = min(self.iter, self.max_iter)
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        hooks = dict(state_dict.get("hooks", {}))
        if "Progress" in hooks:  # DataPosition's name in version 0.1.0
            hooks["DataPosition"] = hooks.pop("Progress")
        super().load_state_dict({**state_dict, "hooks": hooks})
        # Empty when that run had no scaler.
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


class _StepMeans(EventStorage):
    """Collects what a model logs in the micro-batches of a step; ``outer`` gets the means."""

    def __init__(self, outer: EventStorage) -> None:
        super().__init__(outer.iter)
        self._outer = outer

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        self._outer.put_image(img_name, img_tensor)

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        self._outer.put_histogram(hist_name, hist_tensor, bins)

    def latest(self) -> Any:
        return self._outer.latest()

    def write(self) -> None:
        for name, history in self.histories().items():
            hint = self.smoothing_hints()[name]
            self._outer.put_scalar(name, history.global_avg(), smoothing_hint=hint)


def _means(losses: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([each[name].float().reshape(()) for each in losses]).mean()
        for name in losses[0]
    }
