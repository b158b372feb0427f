"""The four passes over a feature map that every norm of this package is made of.

A *row* is one (sample, channel) pair: ``L`` positions. Two passes read for the forward result
(`moments`, `transform`), two for the gradient (`reduce_gradient`, `input_gradient`). All small
numbers are ``(N, C)`` tensors in the accumulation type: float64 for float64 input, else float32.

Each pass is written three times: for CUDA (`triton_passes`), for the layouts that torch's CPU
kernels know (`cpu`), and in plain operators for everything else (`reference`).
"""

from __future__ import annotations

import functools
import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import cpu, reference

__all__ = [
    "accumulation_dtype",
    "fused_for",
    "input_gradient",
    "moments",
    "reduce_gradient",
    "transform",
    "triton_for",
    "triton_weights_for",
]

logger = logging.getLogger(__name__)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for everything else (float16 sums overflow at 65504)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@functools.cache
def triton_for(device: torch.device) -> ModuleType | None:
    """`triton_passes` if Triton runs on the device, else None; says once why it does not."""
    if device.type != "cuda":
        return None
    try:
        from . import triton_passes

        # A driver, a compiler or the GPU itself may be one that Triton cannot do with.
        triton_passes.moments(torch.zeros(1, 1, 16, device=device))
    except Exception as error:
        logger.warning(f"Norms on {device} use torch's operators: Triton failed with {error!r}")
        return None
    return triton_passes


def _passes_for(x: Tensor) -> ModuleType:
    triton = triton_for(x.device)
    if triton is not None and triton.supports(x):
        return triton
    return cpu if x.device.type == "cpu" and cpu.supports(x) else reference


def triton_weights_for(weight: Tensor) -> ModuleType | None:
    """`triton_weights` if it takes the weight of a convolution."""
    if triton_for(weight.device) is None:
        return None
    from . import triton_weights

    return triton_weights if triton_weights.supports(weight) else None


def fused_for(x: Tensor, rule: Any, pool: Any) -> ModuleType | None:
    """The kernels that have the rule and the pool of a forward, if Triton takes ``x``."""
    name = getattr(rule, "fused", None)
    if name is None or not (pool is None or pool.fused):
        return None
    triton = triton_for(x.device)
    if triton is None or not triton.supports(x):
        return None
    from . import triton_batch_channel, triton_switch

    return {"switch": triton_switch, "batch_channel": triton_batch_channel}[name]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each row, ``(N, C)`` each: the first read of ``x``.

    Args:
        x: ``(N, C, *)``. Rows without a position (an empty batch or map) count as mean 0,
            variance 0.
    """
    mean_and_var: tuple[Tensor, Tensor] = _passes_for(x).moments(x)
    return mean_and_var


def transform(x: Tensor, mean: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """``scale * (x - mean) + offset`` in the type and memory format of ``x``: the second read.

    The numbers are broadcastable to ``(N, C)``.
    """
    y: Tensor = _passes_for(x).transform(x, mean, scale, offset)
    return y


def reduce_gradient(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``sum dy`` and ``sum dy * (x - mean)`` of each row, ``(N, C)`` each: the third read."""
    sums: tuple[Tensor, Tensor] = _passes_for(x).reduce_gradient(dy, x, mean)
    return sums


def input_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor, dvar: Tensor
) -> Tensor:
    """``dx = scale * dy + (2 dvar / L)(x - mean) + dmean / L``: the fourth read.

    ``dmean`` and ``dvar`` are the gradients of the row statistics.
    """
    if x.numel() == 0:
        return dy.to(x.dtype)
    dx: Tensor = _passes_for(x).input_gradient(dy, x, mean, scale, dmean, dvar)
    return dx
