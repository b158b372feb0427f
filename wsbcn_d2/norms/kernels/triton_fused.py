"""SN and BCN between the passes, on CUDA: no launch of their own forward, one backward.

What a rule does with N x C numbers takes no time on a GPU, but every operator costs a launch, as
much as a pass over a small map. So each program of the writing kernel forms scale and offset of its
rows from the row statistics, which lie in the cache; the first program of a channel moves the
running ones. Backward, one kernel sums over channels and samples, and each program of the last one
forms the gradients of its rows. Nothing depends on the order in which programs run.

The formulas are those of `SwitchRule` and `BatchChannelRule`; the tests compare.
"""

# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiling import SIZES, Tiling, dense, like, on_device, place, tile
from .triton_passes import launch_moments, launch_reduce

__all__ = ["backward", "forward"]

# Channels that are added up at a time, of a sample and of a group.
_WIDE: tl.constexpr = tl.constexpr(1024)
_MEMBERS: tl.constexpr = tl.constexpr(16)
# Samples up to which every program pools a channel's itself; beyond, a kernel does it once.
_FEW_SAMPLES = 8
_GIVEN, _BATCH, _ESTIMATE = 0, 1, 2
_KINDS = [*SIZES, "samples", "width", "eps", "inner_eps", "rate", "unbias"]


# --- statistics ------------------------------------------------------------------------------


@triton.jit
def _pooled(
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
    pooled = total / samples
    about = old_mean if POOL == 2 else pooled
    spread = tl.zeros_like(old_mean)
    for n in range(samples):
        away = tl.load(mean + n * channels + c, mask=mask, other=0.0) - about
        spread += away * away
    second = (inner + spread) / samples
    new_mean = old_mean + rate * (pooled - old_mean)
    new_var = old_var + rate * (second * unbias - old_var)
    if POOL == 2:
        return new_mean, new_var, new_mean, new_var
    return pooled, second, new_mean, new_var


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


@triton.jit(do_not_specialize=_KINDS)
def _pool_kernel(
    mean, var, before, kept, running_mean, running_var, tracked, rate, unbias, samples, channels,
    POOL: tl.constexpr, MOVES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The statistics over many samples, once."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = c < channels
    center, center_var, new_mean, new_var = _pooled(
        mean, var, before, kept, c, mask, samples, channels, rate, unbias, POOL
    )
    _keep(running_mean, running_var, tracked, kept, c, mask, channels, center, center_var,
          new_mean, new_var, tl.program_id(0) == 0, MOVES)  # fmt: skip


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


@triton.jit
def _z(own_mean, center, center_var, inner_weight, inner_bias, inner_eps, c, mask):
    """BCN's slope and the row means of z = slope * (x - center) + inner_bias."""
    gain = tl.load(inner_weight + c, mask=mask, other=0.0).to(tl.float32)
    level = tl.load(inner_bias + c, mask=mask, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt_rn(center_var + inner_eps)
    return (own_mean - center) * (gain * rstd) + level, gain * rstd, rstd


# --- forward ---------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_KINDS)
def _write_kernel(
    x, y, mean, var, before, kept, running_mean, running_var, tracked, weight, bias, third, fourth,
    eps, inner_eps, rate, unbias, samples, width,
    channels, length, channel_blocks, chunk_blocks,
    SWITCH: tl.constexpr, K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr,
    SOFTMAX: tl.constexpr, POOL: tl.constexpr, MOVES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """``kept``: the pooled mean and variance ``(2, C)``, then LN's ``(2, N)``."""
    rows, row_mask, base, tile, step, start, end, length = place(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    if CHANNELS_LAST:
        channels = channels * UNIT
    n = tl.program_id(0) // channel_blocks
    c = rows - n * channels
    own_mean = tl.load(mean + rows, mask=row_mask, other=0.0)
    own_var = tl.load(var + rows, mask=row_mask, other=0.0)
    center = tl.zeros_like(own_mean)
    center_var = center
    if not SWITCH or BN >= 0:
        center, center_var, new_mean, new_var = _pooled(
            mean, var, before, kept, c, row_mask, samples, channels, rate, unbias, POOL
        )
        if POOL != 0:  # noqa: SIM102 - known when compiling, the inner one is not
            if (n == 0) & (tl.program_id(1) == 0):
                _keep(running_mean, running_var, tracked, kept, c, row_mask, channels, center,
                      center_var, new_mean, new_var, tl.program_id(0) == 0, MOVES)  # fmt: skip
    if SWITCH:
        layer_mean = 0.0
        layer_var = 0.0
        if LN >= 0:
            layer_mean, layer_var = _layer(mean, var, n, channels)
            if (tl.program_id(0) % channel_blocks == 0) & (tl.program_id(1) == 0):
                tl.store(kept + 2 * channels + n, layer_mean)
                tl.store(kept + 2 * channels + samples + n, layer_var)
        mixed_mean, mixed_var = _mix(
            own_mean, own_var, layer_mean, layer_var, center, center_var, third, fourth, c,
            row_mask, width, K, IN, LN, BN, SOFTMAX,
        )  # fmt: skip
        gain = tl.load(weight + c, mask=row_mask, other=0.0).to(tl.float32)
        level = tl.load(bias + c, mask=row_mask, other=0.0).to(tl.float32)
        slope = gain * (1.0 / tl.sqrt_rn(mixed_var + eps))
        level += (own_mean - mixed_mean) * slope
    else:
        # A name keeps its type through a loop: none from before is used again in one.
        z, inner_slope, _rstd = _z(
            own_mean, center, center_var, third, fourth, inner_eps, c, row_mask
        )
        group = c // width
        first = (group * width)[:, None]
        members = tl.arange(0, _MEMBERS)[None, :]
        group_mean = tl.zeros_like(own_mean)
        for at in range(0, width, _MEMBERS):
            m = first + at + members
            mask = row_mask[:, None] & (at + members < width)
            about, about_var, _, _ = _pooled(
                mean, var, before, kept, m, mask, samples, channels, rate, unbias, POOL
            )
            there = tl.load(mean + n * channels + m, mask=mask, other=0.0)
            zs, _, _ = _z(there, about, about_var, third, fourth, inner_eps, m, mask)
            group_mean += tl.sum(tl.where(mask, zs, 0.0), 1)
        group_mean = group_mean / width
        group_var = tl.zeros_like(own_mean)
        for at in range(0, width, _MEMBERS):
            m = first + at + members
            mask = row_mask[:, None] & (at + members < width)
            about, about_var, _, _ = _pooled(
                mean, var, before, kept, m, mask, samples, channels, rate, unbias, POOL
            )
            there = tl.load(mean + n * channels + m, mask=mask, other=0.0)
            zs, slopes, _ = _z(there, about, about_var, third, fourth, inner_eps, m, mask)
            away = zs - group_mean[:, None]
            within = tl.load(var + n * channels + m, mask=mask, other=0.0)
            group_var += tl.sum(tl.where(mask, away * away + slopes * slopes * within, 0.0), 1)
        gain = tl.load(weight + group, mask=row_mask, other=0.0).to(tl.float32)
        level = tl.load(bias + group, mask=row_mask, other=0.0).to(tl.float32)
        gain = gain * (1.0 / tl.sqrt_rn(group_var / width + eps))
        slope = gain * inner_slope
        level += (z - group_mean) * gain
    columns = tl.arange(0, BLOCK)[None, :]
    for at in range(start, end, BLOCK):
        mask = (at + columns < length) & row_mask[:, None]
        there = base + tl.cast(at, tl.int64) * step + tile
        value = tl.load(x + there, mask=mask, other=0.0).to(tl.float32)
        value = (value - own_mean[:, None]) * slope[:, None] + level[:, None]
        tl.store(y + there, value.to(y.dtype.element_ty), mask=mask)


# --- backward --------------------------------------------------------------------------------


@triton.jit
def _sums(parts, row, mask, rows, splits):
    """``sum dy`` and ``sum dy * (x - mean)`` of rows, from the parts ``(2, S, N C)``."""
    total = tl.load(parts + row, mask=mask, other=0.0)
    dot = tl.load(parts + splits * rows + row, mask=mask, other=0.0)
    for split in range(1, splits):
        total += tl.load(parts + split * rows + row, mask=mask, other=0.0)
        dot += tl.load(parts + (splits + split) * rows + row, mask=mask, other=0.0)
    return total, dot


@triton.jit
def _switch_row(
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
    total, dot = _sums(parts, row, mask, samples * channels, splits)
    rstd = 1.0 / tl.sqrt_rn(mixed_var + eps)
    scale = rstd * tl.load(weight + c, mask=mask, other=0.0).to(tl.float32)
    dscale = tl.where(mask, dot + total * (own_mean - mixed_mean), 0.0)
    dmean = -total * scale
    dvar = -0.5 * dscale * scale * rstd * rstd
    return (own_mean, own_var, layer_mean, layer_var, center, center_var, scale, total,
            dscale * rstd, dmean, dvar)  # fmt: skip


@triton.jit(do_not_specialize=_KINDS)
def _switch_sums_kernel(
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
                _switch_row(mean, var, kept, parts, weight, mean_control, var_control, n, c, mask,
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
            values = _switch_row(
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


@triton.jit(do_not_specialize=_KINDS)
def _groups_kernel(
    mean, var, kept, parts, weight, inner_weight, inner_bias, through, of_groups, dweight, dbias,
    dinner_weight, dinner_bias, eps, inner_eps, samples, channels, width, splits,
    TILE_N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """BCN: a program a group, over samples.

    ``through``: what goes back through the channels' statistics ``(2, C)``. ``of_groups``: mean and
    gain of each sample's group and what goes back through its mean and variance, ``(4, N, G)``.
    """
    group = tl.program_id(0)
    groups = tl.num_programs(0)
    member = tl.arange(0, WIDTH)
    c_ = group * width + member
    mask_ = member < width
    c = c_[None, :]
    center = tl.load(kept + c, mask=mask_[None, :], other=0.0)
    center_var = tl.load(kept + channels + c, mask=mask_[None, :], other=0.0)
    outer = tl.load(weight + group).to(tl.float32)
    zero = tl.zeros([TILE_N, WIDTH], tl.float32)
    sum_slope, sum_z = zero, zero
    sum_weight = tl.zeros([TILE_N, 1], tl.float32)
    sum_bias = sum_weight
    for at in range(0, samples, TILE_N):
        n = at + tl.arange(0, TILE_N)[:, None]
        inside = n < samples
        mask = inside & mask_[None, :]
        row = n * channels + c
        own_mean = tl.load(mean + row, mask=mask, other=0.0)
        own_var = tl.load(var + row, mask=mask, other=0.0)
        total, dot = _sums(parts, row, mask, samples * channels, splits)
        z, slope, _ = _z(own_mean, center, center_var, inner_weight, inner_bias, inner_eps, c, mask)
        pooled = tl.sum(tl.where(mask, z, 0.0), 1)[:, None] / width
        away = tl.where(mask, z - pooled, 0.0)
        spread = tl.sum(away * away + slope * slope * own_var, 1)[:, None] / width
        rstd = 1.0 / tl.sqrt_rn(spread + eps)
        gain = rstd * outer
        dgain = tl.sum(dot * slope + total * away, 1)[:, None]
        all_total = tl.sum(total, 1)[:, None]
        sum_weight += tl.where(inside, dgain * rstd, 0.0)
        sum_bias += all_total
        dgroup_mean = -all_total * gain / width
        dgroup_var = -0.5 * dgain * gain * rstd * rstd / width
        dz = dgroup_mean + 2 * dgroup_var * away + total * gain
        dslope = dot * gain + dz * (own_mean - center) + 2 * dgroup_var * slope * own_var
        sum_slope += tl.where(mask, dslope, 0.0)
        sum_z += tl.where(mask, dz, 0.0)
        there = of_groups + n * groups + group
        tl.store(there, pooled, mask=inside)
        tl.store(there + samples * groups, gain, mask=inside)
        tl.store(there + 2 * samples * groups, dgroup_mean, mask=inside)
        tl.store(there + 3 * samples * groups, dgroup_var, mask=inside)
    tl.store(dweight + group, tl.sum(tl.sum(sum_weight, 1), 0))
    tl.store(dbias + group, tl.sum(tl.sum(sum_bias, 1), 0))
    all_slope, all_z = tl.sum(sum_slope, 0), tl.sum(sum_z, 0)
    inner = tl.load(inner_weight + c_, mask=mask_, other=0.0).to(tl.float32)
    inner_var = tl.load(kept + channels + c_, mask=mask_, other=0.0)
    inner_rstd = 1.0 / tl.sqrt_rn(inner_var + inner_eps)
    slope_ = inner * inner_rstd
    tl.store(dinner_weight + c_, all_slope * inner_rstd, mask=mask_)
    tl.store(dinner_bias + c_, all_z, mask=mask_)
    tl.store(through + c_, -all_z * slope_ / samples, mask=mask_)
    dsecond = -0.5 * all_slope * slope_ * inner_rstd * inner_rstd / samples
    tl.store(through + channels + c_, dsecond, mask=mask_)


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


@triton.jit(do_not_specialize=[*_KINDS, "slope_factor", "level_factor"])
def _dx_kernel(
    dy, x, dx, mean, var, kept, parts, weight, third, fourth, through, of_groups, dthird, dfourth,
    eps, inner_eps, slope_factor, level_factor, samples, width, splits,
    channels, length, channel_blocks, chunk_blocks,
    SWITCH: tl.constexpr, K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr,
    SOFTMAX: tl.constexpr, POOLED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    rows, row_mask, base, tile, step, start, end, length = place(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    if CHANNELS_LAST:
        channels = channels * UNIT
    n = tl.program_id(0) // channel_blocks
    c = rows - n * channels
    if SWITCH:
        own_mean, _, layer_mean, _, center, _, scale, _, _, into_mean, into_var = _switch_row(
            mean, var, kept, parts, weight, third, fourth, n, c, row_mask, eps, samples, channels,
            width, splits, K, IN, LN, BN, SOFTMAX,
        )  # fmt: skip
        dmean = tl.zeros_like(own_mean)
        dvar = tl.zeros_like(own_mean)
        if IN >= 0:
            dmean += into_mean * _ratio(third, c, row_mask, width, K, IN, SOFTMAX)
            dvar += into_var * _ratio(fourth, c, row_mask, width, K, IN, SOFTMAX)
        if LN >= 0:
            back = tl.load(through + 2 * channels + samples + n)
            dmean += tl.load(through + 2 * channels + n) + 2 * back * (own_mean - layer_mean)
            dvar += back
        # The controls' gradients: one group after another, shared out among the first programs.
        if tl.program_id(1) == 0:
            for group in range(tl.program_id(0), channels // width, tl.num_programs(0)):
                dratios = of_groups
                _dcontrols(third, dratios, dthird, group, channels, width, K, SOFTMAX)
                _dcontrols(fourth, dratios + K * channels, dfourth, group, channels, width, K,
                           SOFTMAX)  # fmt: skip
    else:
        own_mean = tl.load(mean + rows, mask=row_mask, other=0.0)
        center = tl.load(kept + c, mask=row_mask, other=0.0)
        center_var = tl.load(kept + channels + c, mask=row_mask, other=0.0)
        z, slope, _ = _z(own_mean, center, center_var, third, fourth, inner_eps, c, row_mask)
        groups = channels // width
        found = of_groups + n * groups + c // width
        away = z - tl.load(found, mask=row_mask, other=0.0)
        scale = slope * tl.load(found + samples * groups, mask=row_mask, other=0.0)
        dgroup_mean = tl.load(found + 2 * samples * groups, mask=row_mask, other=0.0)
        dgroup_var = tl.load(found + 3 * samples * groups, mask=row_mask, other=0.0)
        dmean = (dgroup_mean + 2 * dgroup_var * away) * slope
        dvar = slope * slope * dgroup_var
    if POOLED:
        back = tl.load(through + channels + c, mask=row_mask, other=0.0)
        dmean += tl.load(through + c, mask=row_mask, other=0.0) + 2 * back * (own_mean - center)
        dvar += back
    gain = scale[:, None]
    slope_ = (dvar * slope_factor)[:, None]
    level = (dmean * level_factor)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    for at in range(start, end, BLOCK):
        mask = (at + columns < length) & row_mask[:, None]
        there = base + tl.cast(at, tl.int64) * step + tile
        grad = tl.load(dy + there, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + there, mask=mask, other=0.0).to(tl.float32)
        result = gain * grad + slope_ * (value - own_mean[:, None]) + level
        tl.store(dx + there, result.to(dx.dtype.element_ty), mask=mask)


# --- launches --------------------------------------------------------------------------------


def _places(rule: Any) -> dict[str, Any]:
    """What SN's kernels are compiled for."""
    if rule.fused != "switch":
        return {"K": 1, "IN": -1, "LN": -1, "BN": -1, "SOFTMAX": False}
    places = {
        name.upper(): rule.statistics.index(name) if name in rule.used else -1
        for name in ("in", "ln", "bn")
    }
    return {"K": len(rule.statistics), **places, "SOFTMAX": rule.softmax}


def _width(rule: Any, channels: int, controls: Tensor) -> int:
    """Channels of a group: one of those that share controls, or one that BCN normalizes."""
    if rule.fused == "switch":
        return channels if controls.dim() == 1 else channels // controls.shape[0]
    return channels // int(rule.num_groups)


def forward(
    x: Tensor, rule: Any, pool: Any, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, row statistics ``(2, N, C)``, and ``(2 C + 2 N)`` pooled ones for `backward`."""
    x = dense(x)
    samples, channels = x.shape[:2]
    weight, bias, third, fourth = (p.contiguous() for p in parameters)
    kept = x.new_empty(2 * channels + 2 * samples, dtype=torch.float32)
    kind = _GIVEN if pool is None else {"batch": _BATCH, "estimate": _ESTIMATE}.get(pool.fused, 0)
    module: Any = None if pool is None else pool.module
    # Pointers that no kernel follows, where nothing moves.
    running: tuple[Tensor, ...] = (kept, kept, kept)
    before, rate, unbias = kept, 0.0, 1.0
    if kind:
        running = (module.running_mean, module.running_var, module.num_batches_tracked)
        # Programs of one launch may still read what others move.
        before = x.new_empty((2, channels), dtype=torch.float32)
        rate, unbias = float(module.momentum), pool.running_correction(samples)
    rows = launch_moments(x, before if kind else None, running)
    mean, var = rows[0], rows[1]
    moves = kind != _GIVEN and pool.moves()
    with on_device(x.device):
        if kind == _GIVEN and pool is not None:
            torch.cat(pool(mean, var), out=kept[: 2 * channels])
        elif kind and samples > _FEW_SAMPLES:
            _pool_kernel[(triton.cdiv(channels, 256),)](
                mean, var, before, kept, *running, rate, unbias, samples, channels,
                POOL=kind, MOVES=moves, BLOCK=256, num_warps=4,
            )  # fmt: skip
            kind = _GIVEN
        tiling = tile(x, reduces=False)
        y = torch.empty_like(x)
        _write_kernel[tiling.grid](
            x, y, mean, var, before, kept, *running, weight, bias, third, fourth,
            rule.eps, getattr(rule, "inner_eps", 0.0), rate, unbias, samples,
            _width(rule, channels, third), *tiling.sizes,
            SWITCH=rule.fused == "switch", POOL=kind, MOVES=moves, **_places(rule),
            **tiling.options,
        )  # fmt: skip
    return y, rows, kept


def backward(
    dy: Tensor,
    x: Tensor,
    rows: Tensor,
    kept: Tensor,
    rule: Any,
    pool: Any,
    parameters: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradients of ``x`` and of the parameters, these in float32."""
    x = dense(x)
    dy = like(dy, x)
    samples, channels = x.shape[:2]
    weight, _, third, fourth = (p.contiguous() for p in parameters)
    parts, splits = launch_reduce(dy, x, rows[0])
    switch, places = rule.fused == "switch", _places(rule)
    width = _width(rule, channels, third)
    grads = tuple(torch.empty(p.shape, dtype=torch.float32, device=x.device) for p in parameters)
    through = torch.empty_like(kept)
    inner_eps = getattr(rule, "inner_eps", 0.0)
    length = x.numel() // (samples * channels)
    tiling: Tiling = tile(x, reduces=False)
    dx = torch.empty_like(x)
    with on_device(x.device):
        if switch:
            complete = rule.used == rule.statistics
            make = x.new_empty if complete else x.new_zeros
            shared = make((2, places["K"], channels), dtype=torch.float32)
            few = samples <= 16
            block = 256 if few else 16
            _switch_sums_kernel[(triton.cdiv(channels, block) + samples * (places["LN"] >= 0),)](
                rows[0], rows[1], kept, parts, weight, third, fourth, through, grads[0], grads[1],
                shared, rule.eps, samples, channels, width, splits, **places,
                TILE_N=4 if few else 64, TILE_C=block, num_warps=4,
            )  # fmt: skip
        else:
            shared = x.new_empty((4, samples, channels // width), dtype=torch.float32)
            block = max(triton.next_power_of_2(width), 4)
            # Not 1: Triton 3.6 fails to compile sums over a dimension of one.
            few = max(min(512 // block, 64, triton.next_power_of_2(samples)), 2)
            _groups_kernel[(channels // width,)](
                rows[0], rows[1], kept, parts, weight, third, fourth, through, shared, *grads,
                rule.eps, inner_eps, samples, channels, width, splits,
                TILE_N=few, WIDTH=block, num_warps=4,
            )  # fmt: skip
        _dx_kernel[tiling.grid](
            dy, x, dx, rows[0], rows[1], kept, parts, weight, third, fourth, through, shared,
            grads[2], grads[3], rule.eps, inner_eps, 2 / length if length > 1 else 0.0, 1 / length,
            samples, width, splits, *tiling.sizes,
            SWITCH=switch, POOLED=pool is not None and pool.differentiable, **places,
            **tiling.options,
        )  # fmt: skip
    return dx, grads
