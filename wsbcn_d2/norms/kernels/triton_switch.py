"""SN in three kernels and two passes, on CUDA: the rule of `SwitchRule` and its gradient.

Forward, the moments and one kernel that forms each row's scale and offset where it writes. Backward
the sums of dy, one kernel that sums over channels and samples, and one that forms the gradients of
its rows where it writes dx. The tests compare with the rule in float64.
"""

# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiling import on_device, place_channels
from .triton_passes import launch_gradient, launch_reduce, write_affine, write_gradient
from .triton_pools import KINDS, launch_write, pooled_of_rows, sums

__all__ = ["backward", "forward"]

# Channels that are added up at a time, of a sample and of a group.
_WIDE: tl.constexpr = tl.constexpr(1024)


@triton.jit
def _layer(mean, var, n, channels):
    """LN's statistics of sample ``n``."""
    columns = tl.arange(0, _WIDE)
    total = tl.zeros([_WIDE], tl.float32)
    for at in range(0, channels, _WIDE):
        mask = at + columns < channels
        total += tl.load(mean + n * channels + at + columns, mask=mask, other=0.0)
    pooled = tl.sum(total, 0) / channels
    total = tl.zeros([_WIDE], tl.float32)
    for at in range(0, channels, _WIDE):
        mask = at + columns < channels
        away = tl.load(mean + n * channels + at + columns, mask=mask, other=0.0) - pooled
        inner = tl.load(var + n * channels + at + columns, mask=mask, other=0.0)
        total += tl.where(mask, inner + away * away, 0.0)
    return pooled, tl.sum(total, 0) / channels


@triton.jit
def _ratio(controls, c, mask, width, K: tl.constexpr, k: tl.constexpr, SOFTMAX: tl.constexpr):
    """The ratio of statistic ``k`` at channels ``c``."""
    base = controls + c // width * K
    value = tl.load(base + k, mask=mask, other=0.0).to(tl.float32)
    if SOFTMAX:
        total = tl.zeros_like(value)
        for i in tl.static_range(K):
            # exp of differences: no control is too large.
            total += tl.exp(tl.load(base + i, mask=mask, other=0.0).to(tl.float32) - value)
        value = 1.0 / total
    return value


@triton.jit
def _mix(
    own_mean, own_var, layer_mean, layer_var, center, center_var, mean_control, var_control, c,
    mask, width, K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr,
    SOFTMAX: tl.constexpr,
):  # fmt: skip
    """SN's mixed mean and variance; IN, LN, BN are places in the ratios or -1."""
    mixed_mean = tl.zeros_like(own_mean)
    mixed_var = tl.zeros_like(own_mean)
    if IN >= 0:
        mixed_mean += _ratio(mean_control, c, mask, width, K, IN, SOFTMAX) * own_mean
        mixed_var += _ratio(var_control, c, mask, width, K, IN, SOFTMAX) * own_var
    if LN >= 0:
        mixed_mean += _ratio(mean_control, c, mask, width, K, LN, SOFTMAX) * layer_mean
        mixed_var += _ratio(var_control, c, mask, width, K, LN, SOFTMAX) * layer_var
    if BN >= 0:
        mixed_mean += _ratio(mean_control, c, mask, width, K, BN, SOFTMAX) * center
        mixed_var += _ratio(var_control, c, mask, width, K, BN, SOFTMAX) * center_var
    return mixed_mean, mixed_var


@triton.jit(do_not_specialize=KINDS)
def _write_kernel(
    x, y, mean, var, before, kept, running_mean, running_var, tracked, weight, bias,
    mean_control, var_control, eps, rate, unbias, samples, width,
    channels, length, channel_blocks, chunk_blocks,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr,
    SOFTMAX: tl.constexpr, POOL: tl.constexpr, MOVES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """``kept``: the pooled mean and variance ``(2, C)``, then LN's ``(2, N)``."""
    n, c, channels, rows, row_mask, base, tile, step, start, end, length = place_channels(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    own_mean = tl.load(mean + rows, mask=row_mask, other=0.0)
    own_var = tl.load(var + rows, mask=row_mask, other=0.0)
    center = tl.zeros_like(own_mean)
    center_var = center
    if BN >= 0:
        center, center_var = pooled_of_rows(
            mean, var, before, kept, running_mean, running_var, tracked, n, c, row_mask, samples,
            channels, rate, unbias, POOL, MOVES,
        )  # fmt: skip
    layer_mean = 0.0
    layer_var = 0.0
    if LN >= 0:
        layer_mean, layer_var = _layer(mean, var, n, channels)
        if (tl.program_id(0) % channel_blocks == 0) & (tl.program_id(1) == 0):
            tl.store(kept + 2 * channels + n, layer_mean)
            tl.store(kept + 2 * channels + samples + n, layer_var)
    mixed_mean, mixed_var = _mix(
        own_mean, own_var, layer_mean, layer_var, center, center_var, mean_control, var_control, c,
        row_mask, width, K, IN, LN, BN, SOFTMAX,
    )  # fmt: skip
    gain = tl.load(weight + c, mask=row_mask, other=0.0).to(tl.float32)
    level = tl.load(bias + c, mask=row_mask, other=0.0).to(tl.float32)
    slope = gain * (1.0 / tl.sqrt_rn(mixed_var + eps))
    level += (own_mean - mixed_mean) * slope
    write_affine(x, y, own_mean, slope, level, base, tile, step, start, end, length, row_mask,
                 BLOCK)  # fmt: skip


@triton.jit
def _row(
    mean, var, kept, parts, weight, mean_control, var_control, n, c, mask, eps, samples, channels,
    width, splits,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr, SOFTMAX: tl.constexpr,
):  # fmt: skip
    """What every part of SN's backward pass starts from, at rows ``[n, c]``."""
    row = n * channels + c
    own_mean = tl.load(mean + row, mask=mask, other=0.0)
    own_var = tl.load(var + row, mask=mask, other=0.0)
    center = tl.zeros_like(own_mean)
    center_var = center
    layer_mean = center
    layer_var = center
    if BN >= 0:
        center += tl.load(kept + c, mask=mask, other=0.0)
        center_var += tl.load(kept + channels + c, mask=mask, other=0.0)
    if LN >= 0:
        layer_mean += tl.load(kept + 2 * channels + n, mask=n < samples, other=0.0)
        layer_var += tl.load(kept + 2 * channels + samples + n, mask=n < samples, other=0.0)
    mixed_mean, mixed_var = _mix(
        own_mean, own_var, layer_mean, layer_var, center, center_var, mean_control, var_control, c,
        mask, width, K, IN, LN, BN, SOFTMAX,
    )  # fmt: skip
    total, dot = sums(parts, row, mask, samples * channels, splits)
    rstd = 1.0 / tl.sqrt_rn(mixed_var + eps)
    scale = rstd * tl.load(weight + c, mask=mask, other=0.0).to(tl.float32)
    dscale = tl.where(mask, dot + total * (own_mean - mixed_mean), 0.0)
    dmean = -total * scale
    dvar = -0.5 * dscale * scale * rstd * rstd
    return (own_mean, own_var, layer_mean, layer_var, center, center_var, scale, total,
            dscale * rstd, dmean, dvar)  # fmt: skip


@triton.jit(do_not_specialize=KINDS)
def _sums_kernel(
    mean, var, kept, parts, weight, mean_control, var_control, through, dweight, dbias, dratios,
    eps, samples, channels, width, splits,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr, SOFTMAX: tl.constexpr,
    TILE_N: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Sums over samples, a program a tile of channels, then over channels, a program a sample.

    ``through``: what goes back through BN's ``(2, C)`` and LN's ``(2, N)`` statistics.
    """
    pid = tl.program_id(0)
    blocks = (channels + TILE_C - 1) // TILE_C
    if pid < blocks:
        c_ = pid * TILE_C + tl.arange(0, TILE_C)
        c = c_[None, :]
        mask_ = c_ < channels
        zero = tl.zeros([TILE_N, TILE_C], tl.float32)
        sum_weight, sum_bias, sum_mean, sum_var = zero, zero, zero, zero
        in_mean, in_var, ln_mean, ln_var = zero, zero, zero, zero
        for at in range(0, samples, TILE_N):
            n = at + tl.arange(0, TILE_N)[:, None]
            mask = (n < samples) & mask_[None, :]
            own_mean, own_var, layer_mean, layer_var, _, _, _, total, dgain, dmean, dvar = (
                _row(mean, var, kept, parts, weight, mean_control, var_control, n, c, mask,
                            eps, samples, channels, width, splits, K, IN, LN, BN, SOFTMAX)
            )  # fmt: skip
            sum_weight += dgain
            sum_bias += total
            sum_mean += dmean
            sum_var += dvar
            in_mean += dmean * own_mean
            in_var += dvar * own_var
            ln_mean += dmean * layer_mean
            ln_var += dvar * layer_var
        tl.store(dweight + c_, tl.sum(sum_weight, 0), mask=mask_)
        tl.store(dbias + c_, tl.sum(sum_bias, 0), mask=mask_)
        # dratios: (2, K, C); those of a statistic that is not in use were set to zero.
        second = dratios + K * channels
        if IN >= 0:
            tl.store(dratios + IN * channels + c_, tl.sum(in_mean, 0), mask=mask_)
            tl.store(second + IN * channels + c_, tl.sum(in_var, 0), mask=mask_)
        if LN >= 0:
            tl.store(dratios + LN * channels + c_, tl.sum(ln_mean, 0), mask=mask_)
            tl.store(second + LN * channels + c_, tl.sum(ln_var, 0), mask=mask_)
        if BN >= 0:
            all_mean, all_var = tl.sum(sum_mean, 0), tl.sum(sum_var, 0)
            center = tl.load(kept + c_, mask=mask_, other=0.0)
            center_var = tl.load(kept + channels + c_, mask=mask_, other=0.0)
            tl.store(dratios + BN * channels + c_, all_mean * center, mask=mask_)
            tl.store(second + BN * channels + c_, all_var * center_var, mask=mask_)
            all_mean *= _ratio(mean_control, c_, mask_, width, K, BN, SOFTMAX)
            all_var *= _ratio(var_control, c_, mask_, width, K, BN, SOFTMAX)
            tl.store(through + c_, all_mean / samples, mask=mask_)
            tl.store(through + channels + c_, all_var / samples, mask=mask_)
    elif LN >= 0:
        # Names of its own: both branches of a condition must give a name one type.
        sample = pid - blocks
        layer_sum_mean = tl.zeros([_WIDE], tl.float32)
        layer_sum_var = tl.zeros([_WIDE], tl.float32)
        for at_ in range(0, channels, _WIDE):
            channel = at_ + tl.arange(0, _WIDE)
            inside = channel < channels
            values = _row(
                mean, var, kept, parts, weight, mean_control, var_control, sample, channel, inside,
                eps, samples, channels, width, splits, K, IN, LN, BN, SOFTMAX,
            )  # fmt: skip
            ratio = _ratio(mean_control, channel, inside, width, K, LN, SOFTMAX)
            layer_sum_mean += values[9] * ratio
            ratio = _ratio(var_control, channel, inside, width, K, LN, SOFTMAX)
            layer_sum_var += values[10] * ratio
        there = through + 2 * channels + sample
        tl.store(there, tl.sum(layer_sum_mean, 0) / channels)
        tl.store(there + samples, tl.sum(layer_sum_var, 0) / channels)


@triton.jit
def _dcontrols(
    controls, dratios, out, group, channels, width, K: tl.constexpr, SOFTMAX: tl.constexpr
):  # fmt: skip
    """The gradients of one group's K controls from those of each channel's ratios ``(K, C)``."""
    columns = tl.arange(0, _WIDE)
    along = 0.0
    for k in tl.static_range(K):
        total = tl.zeros([_WIDE], tl.float32)
        for at in range(0, width, _WIDE):
            mask = at + columns < width
            there = dratios + k * channels + group * width + at + columns
            total += tl.load(there, mask=mask, other=0.0)
        dratio = tl.sum(total, 0)
        along += dratio * _ratio(controls, group * width, True, width, K, k, SOFTMAX)
    for k in tl.static_range(K):
        total = tl.zeros([_WIDE], tl.float32)
        for at in range(0, width, _WIDE):
            mask = at + columns < width
            there = dratios + k * channels + group * width + at + columns
            total += tl.load(there, mask=mask, other=0.0)
        dratio = tl.sum(total, 0)
        if SOFTMAX:
            ratio = _ratio(controls, group * width, True, width, K, k, SOFTMAX)
            dratio = (dratio - along) * ratio
        tl.store(out + group * K + k, dratio)


@triton.jit(do_not_specialize=[*KINDS, "slope_factor", "level_factor"])
def _dx_kernel(
    dy, x, dx, mean, var, kept, parts, weight, mean_control, var_control, through, dratios,
    dmean_control, dvar_control, eps, slope_factor, level_factor, samples, width, splits,
    channels, length, channel_blocks, chunk_blocks,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr,
    SOFTMAX: tl.constexpr, POOLED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    n, c, channels, _rows, row_mask, base, tile, step, start, end, length = place_channels(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    own_mean, _, layer_mean, _, center, _, scale, _, _, into_mean, into_var = _row(
        mean, var, kept, parts, weight, mean_control, var_control, n, c, row_mask, eps, samples,
        channels, width, splits, K, IN, LN, BN, SOFTMAX,
    )  # fmt: skip
    dmean = tl.zeros_like(own_mean)
    dvar = tl.zeros_like(own_mean)
    if IN >= 0:
        dmean += into_mean * _ratio(mean_control, c, row_mask, width, K, IN, SOFTMAX)
        dvar += into_var * _ratio(var_control, c, row_mask, width, K, IN, SOFTMAX)
    if LN >= 0:
        back = tl.load(through + 2 * channels + samples + n)
        dmean += tl.load(through + 2 * channels + n) + 2 * back * (own_mean - layer_mean)
        dvar += back
    # The controls' gradients: one group after another, shared out among the first programs.
    if tl.program_id(1) == 0:
        for group in range(tl.program_id(0), channels // width, tl.num_programs(0)):
            _dcontrols(mean_control, dratios, dmean_control, group, channels, width, K, SOFTMAX)
            _dcontrols(var_control, dratios + K * channels, dvar_control, group, channels, width,
                       K, SOFTMAX)  # fmt: skip
    if POOLED:
        back = tl.load(through + channels + c, mask=row_mask, other=0.0)
        dmean += tl.load(through + c, mask=row_mask, other=0.0) + 2 * back * (own_mean - center)
        dvar += back
    slope, level = dvar * slope_factor, dmean * level_factor
    write_gradient(dy, x, dx, own_mean, scale, slope, level, base, tile, step, start, end, length,
                   row_mask, BLOCK)  # fmt: skip


def _places(rule: Any) -> dict[str, Any]:
    """What the kernels are compiled for: the place of each statistic in the ratios, or -1."""
    places = {
        name.upper(): rule.statistics.index(name) if name in rule.used else -1
        for name in ("in", "ln", "bn")
    }
    return {"K": len(rule.statistics), **places, "SOFTMAX": rule.softmax}


def _width(channels: int, controls: Tensor) -> int:
    """Channels that share controls."""
    return channels if controls.dim() == 1 else channels // controls.shape[0]


def forward(
    x: Tensor, rule: Any, batch: Any, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and what `backward` needs: row statistics ``(2, N, C)`` and pooled ones.

    Args:
        x: ``(N, C, *)``.
        rule: a `SwitchRule`.
        batch: a pool that has a ``fused`` name, or None.
        parameters: those of the rule.
    """
    width = _width(x.shape[1], parameters[2])
    return launch_write(_write_kernel, x, batch, parameters, (rule.eps,), width, **_places(rule))


def backward(
    dy: Tensor,
    x: Tensor,
    rows: Tensor,
    kept: Tensor,
    rule: Any,
    batch: Any,
    parameters: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradients of ``x`` and of the parameters, these in float32."""
    dy, x, parts, splits = launch_reduce(dy, x, rows[0])
    samples, channels = x.shape[:2]
    weight, _, *controls = (p.contiguous() for p in parameters)
    places, width = _places(rule), _width(channels, controls[0])
    grads = tuple(torch.empty(p.shape, dtype=torch.float32, device=x.device) for p in parameters)
    through = torch.empty_like(kept)
    make = x.new_empty if rule.used == rule.statistics else x.new_zeros
    dratios = make((2, places["K"], channels), dtype=torch.float32)
    few = samples <= 16
    block = 256 if few else 16
    with on_device(x.device):
        _sums_kernel[(triton.cdiv(channels, block) + samples * (places["LN"] >= 0),)](
            rows[0], rows[1], kept, parts, weight, *controls, through, grads[0], grads[1], dratios,
            rule.eps, samples, channels, width, splits, **places,
            TILE_N=4 if few else 64, TILE_C=block, num_warps=4,
        )  # fmt: skip
    numbers = (rows[0], rows[1], kept, parts, weight, *controls, through, dratios, grads[2],
               grads[3], rule.eps)  # fmt: skip
    from_batch = batch is not None and batch.differentiable
    counts = samples, width, splits
    return launch_gradient(_dx_kernel, dy, x, numbers, counts, POOLED=from_batch, **places), grads
