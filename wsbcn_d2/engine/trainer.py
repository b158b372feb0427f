"""The training step: detectron2's, with mixed precision anywhere, clipping, and a guard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

__all__ = ["Trainer"]


class Trainer(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, on CUDA and CPU.

    A step is `forward`, `check_losses`, `backward`, `update`; subclasses (gradient accumulation,
    for example) change one of them or their order in `run_step`.

    Args:
        model: returns a dict of losses (or one) for a batch; DistributedDataParallel or plain.
        data_loader: yields batches, lists of dicts in detectron2's format.
        optimizer: of the model's parameters.
        device: ``"cuda"`` or ``"cpu"``, for autocast.
        amp_dtype: autocast to this type; None trains in float32. float16 gets a loss scaler.
        clip_grad: ``max_norm`` and ``norm_type`` of ``clip_grad_norm_``; None does not clip.
        last_checkpoint: returns the path of the last checkpoint, for the message of an error.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        device: str = "cuda",
        amp_dtype: torch.dtype | None = None,
        clip_grad: dict[str, Any] | None = None,
        last_checkpoint: Callable[[], str] = lambda: "",
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device_type = device.partition(":")[0]
        self.amp_dtype = amp_dtype
        self.clip_grad = clip_grad
        self.last_checkpoint = last_checkpoint
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16
        )

    def run_step(self) -> None:
        """One iteration. Raises FloatingPointError, before anything changes, as `check_losses`."""
        if not self.model.training:
            raise RuntimeError("the model is in eval mode; a hook did not restore train mode")
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        losses = self.forward(batch)
        self.check_losses(losses, batch)
        self.backward(torch.stack([loss.reshape(()) for loss in losses.values()]).sum())
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.update()

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses of a batch, under autocast when mixed precision is on.

        Raises:
            FloatingPointError: detectron2's RPN found its own predictions not finite.
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

    def check_losses(self, losses: Mapping[str, Tensor], batch: list[dict[str, Any]]) -> None:
        """Stop on a loss that is not finite, before it reaches the weights.

        Raises:
            FloatingPointError: with the iteration, this rank's image ids, the losses, and where
                the last checkpoint is. The weights are those of the step before.
        """
        values = torch.stack([loss.detach().float().reshape(()) for loss in losses.values()])
        if values.isfinite().all():
            return
        table = "\n".join(
            f"    {name}: {value:.6g}{'' if math.isfinite(value) else '   <-- not finite'}"
            for name, value in zip(losses, values.tolist(), strict=True)
        )
        raise self._not_finite(f"\n{table}", batch)

    def _not_finite(self, losses: str, batch: list[dict[str, Any]]) -> FloatingPointError:
        ids = ", ".join(str(x.get("image_id", x.get("file_name", "?"))) for x in batch)
        checkpoint = self.last_checkpoint()
        return FloatingPointError(
            f"the loss is not finite at iteration {self.iter}, on rank {comm.get_rank()} of "
            f"{comm.get_world_size()}\n"
            f"  image ids: {ids}\n"
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
        super().load_state_dict(state_dict)
        # Empty when that run had no scaler.
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
