"""BCN in three kernels and two passes, on CUDA: the rule of `BatchChannelRule` and its gradient.

As `triton_switch`, with one kernel backward that sums over a group's channels and samples.
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
from .triton_pools import KINDS, launch_write, pooled, pooled_of_rows, sums

__all__ = ["backward", "forward"]

# Channels of a group that are added up at a time.
_MEMBERS: tl.constexpr = tl.constexpr(16)


@triton.jit
def _z(own_mean, center, center_var, inner_weight, inner_bias, inner_eps, c, mask):
    """BCN's slope and the row means of z = slope * (x - center) + inner_bias."""
    gain = tl.load(inner_weight + c, mask=mask, other=0.0).to(tl.float32)
    level = tl.load(inner_bias + c, mask=mask, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt_rn(center_var + inner_eps)
    return (own_mean - center) * (gain * rstd) + level, gain * rstd, rstd


@triton.jit(do_not_specialize=KINDS)
def _write_kernel(
    x, y, mean, var, before, kept, running_mean, running_var, tracked, weight, bias,
    inner_weight, inner_bias, eps, inner_eps, rate, unbias, samples, width,
    channels, length, channel_blocks, chunk_blocks, POOL: tl.constexpr, MOVES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    n, c, channels, rows, row_mask, base, tile, step, start, end, length = place_channels(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    own_mean = tl.load(mean + rows, mask=row_mask, other=0.0)
    center, center_var = pooled_of_rows(
        mean, var, before, kept, running_mean, running_var, tracked, n, c, row_mask, samples,
        channels, rate, unbias, POOL, MOVES,
    )  # fmt: skip
    # A name keeps its type through a loop: none from before is used again in one.
    z, inner_slope, _rstd = _z(
        own_mean, center, center_var, inner_weight, inner_bias, inner_eps, c, row_mask
    )
    group = c // width
    first = (group * width)[:, None]
    members = tl.arange(0, _MEMBERS)[None, :]
    group_mean = tl.zeros_like(own_mean)
    for at in range(0, width, _MEMBERS):
        m = first + at + members
        mask = row_mask[:, None] & (at + members < width)
        about, about_var, _, _ = pooled(
            mean, var, before, kept, m, mask, samples, channels, rate, unbias, POOL
        )
        there = tl.load(mean + n * channels + m, mask=mask, other=0.0)
        zs, _, _ = _z(there, about, about_var, inner_weight, inner_bias, inner_eps, m, mask)
        group_mean += tl.sum(tl.where(mask, zs, 0.0), 1)
    group_mean = group_mean / width
    group_var = tl.zeros_like(own_mean)
    for at in range(0, width, _MEMBERS):
        m = first + at + members
        mask = row_mask[:, None] & (at + members < width)
        about, about_var, _, _ = pooled(
            mean, var, before, kept, m, mask, samples, channels, rate, unbias, POOL
        )
        there = tl.load(mean + n * channels + m, mask=mask, other=0.0)
        zs, slopes, _ = _z(there, about, about_var, inner_weight, inner_bias, inner_eps, m, mask)
        away = zs - group_mean[:, None]
        within = tl.load(var + n * channels + m, mask=mask, other=0.0)
        group_var += tl.sum(tl.where(mask, away * away + slopes * slopes * within, 0.0), 1)
    gain = tl.load(weight + group, mask=row_mask, other=0.0).to(tl.float32)
    level = tl.load(bias + group, mask=row_mask, other=0.0).to(tl.float32)
    gain = gain * (1.0 / tl.sqrt_rn(group_var / width + eps))
    slope = gain * inner_slope
    level += (z - group_mean) * gain
    write_affine(x, y, own_mean, slope, level, base, tile, step, start, end, length, row_mask,
                 BLOCK)  # fmt: skip


@triton.jit(do_not_specialize=KINDS)
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
        total, dot = sums(parts, row, mask, samples * channels, splits)
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


@triton.jit(do_not_specialize=[*KINDS, "slope_factor", "level_factor"])
def _dx_kernel(
    dy, x, dx, mean, kept, inner_weight, inner_bias, through, of_groups,
    inner_eps, slope_factor, level_factor, samples, width,
    channels, length, channel_blocks, chunk_blocks, POOLED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    n, c, channels, rows, row_mask, base, tile, step, start, end, length = place_channels(
        channels, length, channel_blocks, chunk_blocks, CHANNELS_LAST, ROWS, BLOCK, UNIT
    )
    own_mean = tl.load(mean + rows, mask=row_mask, other=0.0)
    center = tl.load(kept + c, mask=row_mask, other=0.0)
    center_var = tl.load(kept + channels + c, mask=row_mask, other=0.0)
    z, slope, _ = _z(own_mean, center, center_var, inner_weight, inner_bias, inner_eps, c, row_mask)
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
    slope, level = dvar * slope_factor, dmean * level_factor
    write_gradient(dy, x, dx, own_mean, scale, slope, level, base, tile, step, start, end, length,
                   row_mask, BLOCK)  # fmt: skip


def forward(
    x: Tensor, rule: Any, batch: Any, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """As `triton_switch.forward`, for a `BatchChannelRule`."""
    eps, width = (rule.eps, rule.inner_eps), x.shape[1] // rule.num_groups
    return launch_write(_write_kernel, x, batch, parameters, eps, width)


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
    weight, _, *inner = (p.contiguous() for p in parameters)
    width = channels // rule.num_groups
    grads = tuple(torch.empty(p.shape, dtype=torch.float32, device=x.device) for p in parameters)
    through = torch.empty_like(kept)
    of_groups = x.new_empty((4, samples, rule.num_groups), dtype=torch.float32)
    block = max(triton.next_power_of_2(width), 4)
    # Not 1: Triton 3.6 fails to compile sums over a dimension of one.
    few = max(min(512 // block, 64, triton.next_power_of_2(samples)), 2)
    with on_device(x.device):
        _groups_kernel[(rule.num_groups,)](
            rows[0], rows[1], kept, parts, weight, *inner, through, of_groups, *grads,
            rule.eps, rule.inner_eps, samples, channels, width, splits,
            TILE_N=few, WIDTH=block, num_warps=4,
        )  # fmt: skip
    numbers = rows[0], kept, *inner, through, of_groups, rule.inner_eps
    from_batch = batch is not None and batch.differentiable
    counts = samples, width
    return launch_gradient(_dx_kernel, dy, x, numbers, counts, POOLED=from_batch), grads
