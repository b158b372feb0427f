"""The channels' statistics between the passes, on CUDA, without a launch of their own.

What a rule does with N x C numbers takes no time on a GPU, but every operator costs a launch, as
much as a pass over a small map. So each program of the kernel that writes the result pools what its
rows need from the row statistics, which lie in the cache; the first program of a channel moves the
running ones. Nothing depends on the order in which programs run.

Used by the two rules that have kernels, `triton_switch` and `triton_batch_channel`.
"""

# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiling import SIZES, dense, on_device, tile
from .triton_passes import launch_moments

__all__ = ["KINDS", "launch_write", "pooled", "pooled_of_rows", "sums"]

# Samples up to which every program pools a channel's itself; beyond, a kernel does it once.
_FEW_SAMPLES = 8
_GIVEN, _BATCH, _ESTIMATE = 0, 1, 2
# Arguments that Triton does not specialize on, as `tiling.SIZES`.
KINDS = [*SIZES, "samples", "width", "eps", "inner_eps", "rate", "unbias"]


@triton.jit
def pooled(
    mean, var, before, kept, c, mask, samples, channels, rate, unbias, POOL: tl.constexpr
):  # fmt: skip
    """Of channels ``c``: the mean and variance in use, and what the running ones move to."""
    if POOL == 0:
        center = tl.load(kept + c, mask=mask, other=0.0)
        center_var = tl.load(kept + channels + c, mask=mask, other=0.0)
        return center, center_var, center, center_var
    old_mean = tl.load(before + c, mask=mask, other=0.0)
    old_var = tl.load(before + channels + c, mask=mask, other=0.0)
    total = tl.zeros_like(old_mean)
    inner = tl.zeros_like(old_mean)
    for n in range(samples):
        total += tl.load(mean + n * channels + c, mask=mask, other=0.0)
        inner += tl.load(var + n * channels + c, mask=mask, other=0.0)
    own = total / samples
    about = old_mean if POOL == 2 else own
    spread = tl.zeros_like(old_mean)
    for n in range(samples):
        away = tl.load(mean + n * channels + c, mask=mask, other=0.0) - about
        spread += away * away
    second = (inner + spread) / samples
    new_mean = old_mean + rate * (own - old_mean)
    new_var = old_var + rate * (second * unbias - old_var)
    if POOL == 2:
        return new_mean, new_var, new_mean, new_var
    return own, second, new_mean, new_var


@triton.jit
def _keep(
    running_mean, running_var, tracked, kept, c, mask, channels, center, center_var, new_mean,
    new_var, first, MOVES: tl.constexpr,
):  # fmt: skip
    tl.store(kept + c, center, mask=mask)
    tl.store(kept + channels + c, center_var, mask=mask)
    if MOVES:
        tl.store(running_mean + c, new_mean.to(running_mean.dtype.element_ty), mask=mask)
        tl.store(running_var + c, new_var.to(running_var.dtype.element_ty), mask=mask)
        if first:
            tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def pooled_of_rows(
    mean, var, before, kept, running_mean, running_var, tracked, n, c, mask, samples, channels,
    rate, unbias, POOL: tl.constexpr, MOVES: tl.constexpr,
):  # fmt: skip
    """The mean and variance in use at rows ``[n, c]``; a channel's first program moves them."""
    center, center_var, new_mean, new_var = pooled(
        mean, var, before, kept, c, mask, samples, channels, rate, unbias, POOL
    )
    if POOL != 0:  # noqa: SIM102 - known when compiling, the inner one is not
        if (n == 0) & (tl.program_id(1) == 0):
            _keep(running_mean, running_var, tracked, kept, c, mask, channels, center, center_var,
                 new_mean, new_var, tl.program_id(0) == 0, MOVES)  # fmt: skip
    return center, center_var


@triton.jit(do_not_specialize=KINDS)
def _pool_kernel(
    mean, var, before, kept, running_mean, running_var, tracked, rate, unbias, samples, channels,
    POOL: tl.constexpr, MOVES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The statistics over many samples, once."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = c < channels
    center, center_var, new_mean, new_var = pooled(
        mean, var, before, kept, c, mask, samples, channels, rate, unbias, POOL
    )
    _keep(running_mean, running_var, tracked, kept, c, mask, channels, center, center_var,
         new_mean, new_var, tl.program_id(0) == 0, MOVES)  # fmt: skip


@triton.jit
def sums(parts, row, mask, rows, splits):
    """``sum dy`` and ``sum dy * (x - mean)`` of rows, from the parts ``(2, S, N C)``."""
    total = tl.load(parts + row, mask=mask, other=0.0)
    dot = tl.load(parts + splits * rows + row, mask=mask, other=0.0)
    for split in range(1, splits):
        total += tl.load(parts + split * rows + row, mask=mask, other=0.0)
        dot += tl.load(parts + (splits + split) * rows + row, mask=mask, other=0.0)
    return total, dot


def launch_write(
    kernel: Any,
    x: Tensor,
    pool: Any,
    parameters: tuple[Tensor, ...],
    eps: tuple[float, ...],
    width: int,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The moments of ``x``, then a rule's kernel, which pools what its rows need and writes.

    Args:
        kernel: the rule's.
        x: ``(N, C, *)``.
        pool: one that has a ``fused`` name, or None.
        parameters: those of the rule.
        eps: the kernel's one or two.
        width: channels of a group.
        options: what else the kernel is compiled for.

    Returns:
        the result; the row statistics ``(2, N, C)``; and the pooled mean and variance ``(2, C)``
        with ``(2, N)`` numbers that the rule may fill, flat.
    """
    x = dense(x)
    samples, channels = x.shape[:2]
    kept = x.new_empty(2 * channels + 2 * samples, dtype=torch.float32)
    kind = _GIVEN if pool is None else {"batch": _BATCH, "estimate": _ESTIMATE}.get(pool.fused, 0)
    # Pointers that no kernel follows, where nothing moves.
    running: tuple[Tensor, ...] = (kept, kept, kept)
    before, rate, unbias = kept, 0.0, 1.0
    if kind:
        module: Any = pool.module
        running = (module.running_mean, module.running_var, module.num_batches_tracked)
        # Programs of one launch may still read what others move.
        before = x.new_empty((2, channels), dtype=torch.float32)
        rate, unbias = float(module.momentum), pool.running_correction(samples)
    rows = launch_moments(x, before if kind else None, running)
    moves = kind != _GIVEN and pool.moves()
    tiling = tile(x, reduces=False)
    y = torch.empty_like(x)
    with on_device(x.device):
        if kind == _GIVEN and pool is not None:
            torch.cat(pool(rows[0], rows[1]), out=kept[: 2 * channels])
        elif kind and samples > _FEW_SAMPLES:
            _pool_kernel[(triton.cdiv(channels, 256),)](
                rows[0], rows[1], before, kept, *running, rate, unbias, samples, channels,
                POOL=kind, MOVES=moves, BLOCK=256, num_warps=4,
            )  # fmt: skip
            kind = _GIVEN
        kernel[tiling.grid](
            x, y, rows[0], rows[1], before, kept, *running, *(p.contiguous() for p in parameters),
            *eps, rate, unbias, samples, width, *tiling.sizes,
            POOL=kind, MOVES=moves, **options, **tiling.options,
        )  # fmt: skip
    return y, rows, kept
