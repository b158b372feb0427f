"""What a forward runs under: a tracer, a recomputation, autocast, how many optimizer steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._compile import _disable_dynamo
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = [
    "autocasting",
    "full_precision",
    "may_be_recomputed",
    "not_compiled",
    "optimizer_steps",
    "recomputing",
    "tracing",
    "without_grad",
]

# torch.compiler.disable, but without importing the compiler here, which takes more than a second.
not_compiled = _disable_dynamo


def tracing() -> bool:
    """Whether a tracer (jit, export, ONNX, dynamo) is watching and needs to see plain operators."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()


def recomputing() -> bool:
    """Whether this forward runs inside a backward pass, that is, for activation checkpointing.

    Running statistics must then stay as they are: the micro-batch has moved them already.
    """
    # dynamo cannot trace the question, and traces a checkpointed forward only once.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def may_be_recomputed() -> bool:
    """Whether an activation checkpoint may run this forward again.

    The reentrant kind runs it without gradient the first time, the other one packs what is saved
    for backward.
    """
    if torch.compiler.is_compiling():
        return False
    packs = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    return packs or not torch.is_grad_enabled()


def without_grad() -> AbstractContextManager[Any]:
    """Without gradients, for what is kept: out of inference mode too, as what that makes, a later
    forward could not save for backward."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else torch.no_grad()


def autocasting(device_type: str) -> bool:
    """Whether autocast is on."""
    if device_type not in ("cpu", "cuda") and not torch.amp.is_autocast_available(device_type):
        return False
    return torch.is_autocast_enabled(device_type)


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Autocast switched off, where it is on."""
    # Entering a context costs as much as several operators on a small map.
    if autocasting(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


def optimizer_steps() -> int:
    """How often any optimizer has stepped. Fused ones do not move the version counters of the
    parameters that they write."""
    return _optimizer_steps
