"""The forms of `closed_forms` as Triton kernels: two launches forward, two or three backward.

On a GPU the arithmetic on row statistics takes no time, but every operator on them costs a launch,
as much as a pass over a small feature map. Formulas and names are those of `closed_forms`, which
the tests compare with. Nothing depends on the order in which programs run.
"""

# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from .affine import recomputing
from .triton_kernels import _on

if TYPE_CHECKING:
    from .closed_forms import BatchChannelForm, Gradients, Pool, SwitchForm

__all__ = ["batch_channel_backward", "batch_channel_forward", "switch_backward", "switch_forward"]

# Channels that a program of one sample takes at a time.
_WIDE = 1024
# Numbers in the tile of a program that sums over samples.
_TILE = 1024
_SIZES = ["samples", "channels", "width", "groups", "group_blocks"]
_NONE, _BATCH, _ESTIMATE = 0, 1, 2


# --- statistics over the batch ---------------------------------------------------------------


@triton.jit
def _sum_over_samples(
    numbers, row, mask_c, samples, channels, about, SQUARE: tl.constexpr, TILE_N: tl.constexpr
):
    """Sums over n of numbers[n, row], or of (numbers[n, row] - about)^2."""
    total = tl.zeros([TILE_N, row.shape[0]], tl.float32)
    for at in range(0, samples, TILE_N):
        n = at + tl.arange(0, TILE_N)
        mask = (n < samples)[:, None] & mask_c[None, :]
        value = tl.load(numbers + n[:, None] * channels + row[None, :], mask=mask, other=0.0)
        if SQUARE:
            value = tl.where(mask, value - about[None, :], 0.0)
            value = value * value
        total += value
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=[*_SIZES, "rate", "unbias"])
def _pool_kernel(
    mean, var, layer, batch, running_mean, running_var, tracked, rate, unbias, samples, channels,
    LAYER: tl.constexpr, BATCH: tl.constexpr, MOVES: tl.constexpr,
    WIDE: tl.constexpr, TILE_N: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """LN's statistics, a program a sample, then BN's, a program a tile of channels."""
    pid = tl.program_id(0)
    if LAYER:
        if pid < samples:
            columns = tl.arange(0, WIDE)
            row = pid * channels
            total = tl.zeros([WIDE], tl.float32)
            for at in range(0, channels, WIDE):
                mask = at + columns < channels
                total += tl.load(mean + row + at + columns, mask=mask, other=0.0)
            pooled = tl.sum(total, 0) / channels
            total = tl.zeros([WIDE], tl.float32)
            for at in range(0, channels, WIDE):
                mask = at + columns < channels
                away = tl.load(mean + row + at + columns, mask=mask, other=0.0) - pooled
                inner = tl.load(var + row + at + columns, mask=mask, other=0.0)
                total += tl.where(mask, inner + away * away, 0.0)
            tl.store(layer + pid, pooled)
            tl.store(layer + samples + pid, tl.sum(total, 0) / channels)
        pid -= samples
    if BATCH != 0:  # noqa: SIM102 - known when compiling, the inner one is not
        if pid >= 0:
            row = pid * TILE_C + tl.arange(0, TILE_C)
            mask = row < channels
            zero = tl.zeros([TILE_C], tl.float32)
            pooled = _sum_over_samples(mean, row, mask, samples, channels, zero, False, TILE_N)
            pooled = pooled / samples
            inner = _sum_over_samples(var, row, mask, samples, channels, zero, False, TILE_N)
            about = pooled
            if BATCH == 2:
                about = tl.load(running_mean + row, mask=mask, other=0.0).to(tl.float32)
            spread = _sum_over_samples(mean, row, mask, samples, channels, about, True, TILE_N)
            second = (inner + spread) / samples
            if MOVES:
                old_mean = tl.load(running_mean + row, mask=mask, other=0.0).to(tl.float32)
                old_var = tl.load(running_var + row, mask=mask, other=0.0).to(tl.float32)
                new_mean = old_mean + rate * (pooled - old_mean)
                new_var = old_var + rate * (second * unbias - old_var)
                kind = running_mean.dtype.element_ty
                tl.store(running_mean + row, new_mean.to(kind), mask=mask)
                tl.store(running_var + row, new_var.to(kind), mask=mask)
                if pid == 0:
                    tl.store(tracked, tl.load(tracked) + 1)
            if BATCH == 2:
                if MOVES:
                    pooled = new_mean
                    second = new_var
                else:
                    pooled = about
                    second = tl.load(running_var + row, mask=mask, other=0.0).to(tl.float32)
            tl.store(batch + row, pooled, mask=mask)
            tl.store(batch + channels + row, second, mask=mask)


def _sample_tile(samples: int) -> dict[str, int]:
    """Few samples and many channels at a time, or the other way round."""
    tile = 4 if samples <= 16 else 64
    return {"TILE_N": tile, "TILE_C": _TILE // tile}


def _pool(
    pool: Pool | None, mean: Tensor, var: Tensor, layer: bool
) -> tuple[Tensor | None, Tensor | None]:
    """LN's ``(2, N)`` and BN's ``(2, C)`` statistics; the latter may move the running ones."""
    samples, channels = mean.shape
    layered = mean.new_empty((2, samples)) if layer else None
    batch, kind = None, _NONE
    moves, momentum = False, 0.0
    module: nn.Module | None = None
    if pool is not None:
        module = pool.module
        # momentum=None averages with a rate that depends on the count: torch's way will do.
        if pool.kind == "running" or not isinstance(module.momentum, float | int):
            batch = torch.stack(pool(mean, var))
        else:
            batch = mean.new_empty((2, channels))
            kind = _ESTIMATE if pool.kind == "estimate" else _BATCH
            moves, momentum = not recomputing(), float(module.momentum)
    if kind == _NONE and not layer:
        return None, batch
    tile = _sample_tile(samples)
    programs = samples * layer + (triton.cdiv(channels, tile["TILE_C"]) if kind else 0)
    # Pointers that a kernel does not follow.
    running = [mean, mean, mean]
    if kind:
        assert module is not None and pool is not None
        running = [module.running_mean, module.running_var, module.num_batches_tracked]  # type: ignore[list-item]
    with _on(mean.device):
        _pool_kernel[(programs,)](
            mean, var, mean if layered is None else layered, mean if batch is None else batch,
            *running, momentum, pool.unbias(samples) if kind and pool else 1.0, samples, channels,
            LAYER=layer, BATCH=kind, MOVES=moves, WIDE=_WIDE, **tile, num_warps=4,
        )  # fmt: skip
    return layered, batch


# --- SN --------------------------------------------------------------------------------------


@triton.jit
def _ratio(ratios, row, mask, width, K: tl.constexpr, k: tl.constexpr):
    return tl.load(ratios + row // width * K + k, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _mixed(
    mean, var, layer, batch, mean_ratio, var_ratio, n, row, mask, row_mask, samples, channels,
    width, K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The rows' own moments and the mixed ones; IN, LN, BN are places in the ratios or -1."""
    own_mean = tl.load(mean + n * channels + row, mask=mask, other=0.0)
    own_var = tl.load(var + n * channels + row, mask=mask, other=0.0)
    mixed_mean = tl.zeros_like(own_mean)
    mixed_var = tl.zeros_like(own_var)
    if IN >= 0:
        mixed_mean += _ratio(mean_ratio, row, row_mask, width, K, IN) * own_mean
        mixed_var += _ratio(var_ratio, row, row_mask, width, K, IN) * own_var
    if LN >= 0:
        pooled = tl.load(layer + n, mask=n < samples, other=0.0)
        mixed_mean += _ratio(mean_ratio, row, row_mask, width, K, LN) * pooled
        pooled = tl.load(layer + samples + n, mask=n < samples, other=0.0)
        mixed_var += _ratio(var_ratio, row, row_mask, width, K, LN) * pooled
    if BN >= 0:
        pooled = tl.load(batch + row, mask=row_mask, other=0.0)
        mixed_mean += _ratio(mean_ratio, row, row_mask, width, K, BN) * pooled
        pooled = tl.load(batch + channels + row, mask=row_mask, other=0.0)
        mixed_var += _ratio(var_ratio, row, row_mask, width, K, BN) * pooled
    return own_mean, own_var, mixed_mean, mixed_var


@triton.jit(do_not_specialize=[*_SIZES, "eps"])
def _switch_kernel(
    mean, var, layer, batch, weight, bias, mean_ratio, var_ratio, scale_out, offset_out, eps,
    samples, channels, width,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    row = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    mask = row < channels
    own_mean, _, mixed_mean, mixed_var = _mixed(
        mean, var, layer, batch, mean_ratio, var_ratio, n, row, mask, mask, samples, channels,
        width, K, IN, LN, BN,
    )  # fmt: skip
    gain = tl.load(weight + row, mask=mask, other=0.0).to(tl.float32)
    level = tl.load(bias + row, mask=mask, other=0.0).to(tl.float32)
    scale = gain * (1.0 / tl.sqrt_rn(mixed_var + eps))
    tl.store(scale_out + n * channels + row, scale, mask=mask)
    tl.store(offset_out + n * channels + row, (own_mean - mixed_mean) * scale + level, mask=mask)


@triton.jit
def _switch_row(
    mean, var, layer, batch, weight, mean_ratio, var_ratio, dy_sum, dy_dot, eps, n, row, mask,
    row_mask, samples, channels, width,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What every part of the backward pass starts from, at rows ``[n, row]``."""
    own_mean, own_var, mixed_mean, mixed_var = _mixed(
        mean, var, layer, batch, mean_ratio, var_ratio, n, row, mask, row_mask, samples, channels,
        width, K, IN, LN, BN,
    )  # fmt: skip
    total = tl.load(dy_sum + n * channels + row, mask=mask, other=0.0)
    dot = tl.load(dy_dot + n * channels + row, mask=mask, other=0.0)
    rstd = 1.0 / tl.sqrt_rn(mixed_var + eps)
    scale = rstd * tl.load(weight + row, mask=row_mask, other=0.0).to(tl.float32)
    dscale = tl.where(mask, dot + total * (own_mean - mixed_mean), 0.0)
    dmixed_mean = -total * scale
    dmixed_var = -0.5 * dscale * scale * rstd * rstd
    return own_mean, own_var, scale, total, dscale * rstd, dmixed_mean, dmixed_var


@triton.jit(do_not_specialize=[*_SIZES, "eps"])
def _switch_pool_backward_kernel(
    mean, var, layer, batch, weight, mean_ratio, var_ratio, dy_sum, dy_dot,
    through_layer, through_batch, dweight, dbias, dratios, eps, samples, channels, width,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr, POOLED: tl.constexpr,
    WIDE: tl.constexpr, TILE_N: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Sums over channels, a program a sample, then over samples, a program a tile of channels."""
    pid = tl.program_id(0)
    if LN >= 0:
        if pid < samples:
            sum_mean = tl.zeros([WIDE], tl.float32)
            sum_var = tl.zeros([WIDE], tl.float32)
            for at in range(0, channels, WIDE):
                row = at + tl.arange(0, WIDE)
                mask = row < channels
                _, _, _, _, _, dmean, dvar = _switch_row(
                    mean, var, layer, batch, weight, mean_ratio, var_ratio, dy_sum, dy_dot, eps,
                    pid, row, mask, mask, samples, channels, width, K, IN, LN, BN,
                )  # fmt: skip
                sum_mean += dmean * _ratio(mean_ratio, row, mask, width, K, LN)
                sum_var += dvar * _ratio(var_ratio, row, mask, width, K, LN)
            tl.store(through_layer + pid, tl.sum(sum_mean, 0) / channels)
            tl.store(through_layer + samples + pid, tl.sum(sum_var, 0) / channels)
        pid -= samples
    if pid >= 0:
        row_ = pid * TILE_C + tl.arange(0, TILE_C)
        row_mask_ = row_ < channels
        row = row_[None, :]
        row_mask = row_mask_[None, :]
        zero = tl.zeros([TILE_N, TILE_C], tl.float32)
        sum_weight, sum_bias, sum_mean, sum_var = zero, zero, zero, zero
        in_mean, in_var, ln_mean, ln_var = zero, zero, zero, zero
        for at in range(0, samples, TILE_N):
            n = at + tl.arange(0, TILE_N)[:, None]
            mask = (n < samples) & row_mask
            own_mean, own_var, _, total, dgain, dmean, dvar = _switch_row(
                mean, var, layer, batch, weight, mean_ratio, var_ratio, dy_sum, dy_dot, eps,
                n, row, mask, row_mask, samples, channels, width, K, IN, LN, BN,
            )  # fmt: skip
            sum_weight += dgain
            sum_bias += total
            sum_mean += dmean
            sum_var += dvar
            if IN >= 0:
                in_mean += dmean * own_mean
                in_var += dvar * own_var
            if LN >= 0:
                ln_mean += dmean * tl.load(layer + n, mask=n < samples, other=0.0)
                ln_var += dvar * tl.load(layer + samples + n, mask=n < samples, other=0.0)
        tl.store(dweight + row_, tl.sum(sum_weight, 0), mask=row_mask_)
        tl.store(dbias + row_, tl.sum(sum_bias, 0), mask=row_mask_)
        # dratios: (2, K, C); those of a statistic that is not in use were set to zero.
        second = dratios + K * channels
        if IN >= 0:
            tl.store(dratios + IN * channels + row_, tl.sum(in_mean, 0), mask=row_mask_)
            tl.store(second + IN * channels + row_, tl.sum(in_var, 0), mask=row_mask_)
        if LN >= 0:
            tl.store(dratios + LN * channels + row_, tl.sum(ln_mean, 0), mask=row_mask_)
            tl.store(second + LN * channels + row_, tl.sum(ln_var, 0), mask=row_mask_)
        if BN >= 0:
            all_mean, all_var = tl.sum(sum_mean, 0), tl.sum(sum_var, 0)
            pooled = tl.load(batch + row_, mask=row_mask_, other=0.0)
            tl.store(dratios + BN * channels + row_, all_mean * pooled, mask=row_mask_)
            pooled = tl.load(batch + channels + row_, mask=row_mask_, other=0.0)
            tl.store(second + BN * channels + row_, all_var * pooled, mask=row_mask_)
            if POOLED:
                all_mean *= _ratio(mean_ratio, row_, row_mask_, width, K, BN) / samples
                all_var *= _ratio(var_ratio, row_, row_mask_, width, K, BN) / samples
                tl.store(through_batch + row_, all_mean, mask=row_mask_)
                tl.store(through_batch + channels + row_, all_var, mask=row_mask_)


@triton.jit(do_not_specialize=[*_SIZES, "eps"])
def _switch_backward_kernel(
    mean, var, layer, batch, weight, mean_ratio, var_ratio, dy_sum, dy_dot,
    through_layer, through_batch, dratios, scale_out, dmean_out, dvar_out,
    dmean_ratio, dvar_ratio, eps, samples, channels, width,
    K: tl.constexpr, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr, POOLED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The rows' gradients; then, a program a channel group, those of the ratios."""
    n = tl.program_id(0)
    if n < samples:
        row = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        mask = row < channels
        own_mean, _, scale, _, _, dmixed_mean, dmixed_var = _switch_row(
            mean, var, layer, batch, weight, mean_ratio, var_ratio, dy_sum, dy_dot, eps,
            n, row, mask, mask, samples, channels, width, K, IN, LN, BN,
        )  # fmt: skip
        dmean = tl.zeros([WIDE], tl.float32)
        dvar = tl.zeros([WIDE], tl.float32)
        if IN >= 0:
            dmean += dmixed_mean * _ratio(mean_ratio, row, mask, width, K, IN)
            dvar += dmixed_var * _ratio(var_ratio, row, mask, width, K, IN)
        if LN >= 0:
            through = tl.load(through_layer + samples + n)
            dmean += tl.load(through_layer + n) + 2 * through * (own_mean - tl.load(layer + n))
            dvar += through
        if POOLED:
            through = tl.load(through_batch + channels + row, mask=mask, other=0.0)
            away = own_mean - tl.load(batch + row, mask=mask, other=0.0)
            dmean += tl.load(through_batch + row, mask=mask, other=0.0) + 2 * through * away
            dvar += through
        tl.store(scale_out + n * channels + row, scale, mask=mask)
        tl.store(dmean_out + n * channels + row, dmean, mask=mask)
        tl.store(dvar_out + n * channels + row, dvar, mask=mask)
    elif tl.program_id(1) == 0:
        group = n - samples
        for k in tl.static_range(K):
            sum_mean = tl.zeros([WIDE], tl.float32)
            sum_var = tl.zeros([WIDE], tl.float32)
            for at in range(0, width, WIDE):
                place = at + tl.arange(0, WIDE)
                mask = place < width
                parts = dratios + k * channels + group * width + place
                sum_mean += tl.load(parts, mask=mask, other=0.0)
                sum_var += tl.load(parts + K * channels, mask=mask, other=0.0)
            tl.store(dmean_ratio + group * K + k, tl.sum(sum_mean, 0))
            tl.store(dvar_ratio + group * K + k, tl.sum(sum_var, 0))


def _places(form: SwitchForm) -> dict[str, int]:
    places = {"K": len(form.statistics)}
    for name in ("in", "ln", "bn"):
        places[name.upper()] = form.statistics.index(name) if name in form.used else -1
    return places


def switch_forward(
    form: SwitchForm, mean: Tensor, var: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """`SwitchForm.forward`; what it keeps are LN's ``(2, N)`` and BN's ``(2, C)`` statistics."""
    weight, bias, mean_ratio, var_ratio = (p.contiguous() for p in parameters)
    samples, channels = mean.shape
    layer, batch = _pool(
        form.pool if "bn" in form.used else None, mean, var, layer="ln" in form.used
    )
    result = mean.new_empty((2, samples, channels))
    with _on(mean.device):
        _switch_kernel[(samples, triton.cdiv(channels, _WIDE))](
            mean, var, mean if layer is None else layer, mean if batch is None else batch,
            weight, bias, mean_ratio, var_ratio, result[0], result[1], form.eps,
            samples, channels, _width(mean_ratio, channels),
            **_places(form), WIDE=_WIDE, num_warps=4,
        )  # fmt: skip
    return result[0], result[1], tuple(t for t in (layer, batch) if t is not None)


def _width(ratio: Tensor, channels: int) -> int:
    return channels if ratio.dim() == 1 else channels // ratio.shape[0]


def switch_backward(
    form: SwitchForm,
    kept: tuple[Tensor, ...],
    mean: Tensor,
    var: Tensor,
    dy_sum: Tensor,
    dy_dot: Tensor,
    *parameters: Tensor,
) -> Gradients:
    """`SwitchForm.backward`."""
    from .closed_forms import Gradients

    weight, _, mean_ratio, var_ratio = (p.contiguous() for p in parameters)
    samples, channels = mean.shape
    places = _places(form)
    unused = mean  # a pointer that no kernel follows
    pooled = list(kept)
    layer = pooled.pop(0) if "ln" in form.used else unused
    batch = pooled.pop(0) if "bn" in form.used else unused
    dy_sum, dy_dot = dy_sum.contiguous(), dy_dot.contiguous()
    width = _width(mean_ratio, channels)
    groups, count = channels // width, places["K"]
    through_layer = mean.new_empty((2, samples))
    through_batch = mean.new_empty((2, channels))
    dparameters = mean.new_empty((2, channels))
    complete = form.used == form.statistics
    dratios = (mean.new_empty if complete else mean.new_zeros)((2, count, channels))
    dratio = mean.new_empty((2, *mean_ratio.shape))
    rows = mean.new_empty((3, samples, channels))
    tile = _sample_tile(samples)
    pooled_batch = form.pool.depends_on_batch and "bn" in form.used
    shared = (mean, var, layer, batch, weight, mean_ratio, var_ratio, dy_sum, dy_dot)
    sizes = (form.eps, samples, channels, width)
    programs = triton.cdiv(channels, tile["TILE_C"]) + samples * ("ln" in form.used)
    with _on(mean.device):
        _switch_pool_backward_kernel[(programs,)](
            *shared, through_layer, through_batch, dparameters[0], dparameters[1], dratios, *sizes,
            **places, POOLED=pooled_batch, WIDE=_WIDE, **tile, num_warps=4,
        )  # fmt: skip
        _switch_backward_kernel[(samples + groups, triton.cdiv(channels, _WIDE))](
            *shared, through_layer, through_batch, dratios, rows[0], rows[1], rows[2],
            dratio[0], dratio[1], *sizes, **places, POOLED=pooled_batch, WIDE=_WIDE, num_warps=4,
        )  # fmt: skip
    return Gradients(
        rows[0], rows[1], rows[2], (dparameters[0], dparameters[1], dratio[0], dratio[1])
    )


# --- BCN -------------------------------------------------------------------------------------


@triton.jit
def _z(
    mean, center, center_var, inner_weight, inner_bias, eps, n, row, mask, channels,
):  # fmt: skip
    """Means of z = slope * (x - center) + inner_bias, the slopes, and x's centred means."""
    about = tl.load(center + row, mask=mask, other=0.0)
    spread = tl.load(center_var + row, mask=mask, other=0.0)
    gain = tl.load(inner_weight + row, mask=mask, other=0.0).to(tl.float32)
    level = tl.load(inner_bias + row, mask=mask, other=0.0).to(tl.float32)
    slope = gain * (1.0 / tl.sqrt_rn(spread + eps))
    centered = tl.load(mean + n * channels + row, mask=mask, other=0.0) - about
    return centered * slope + level, slope, centered


@triton.jit(do_not_specialize=[*_SIZES, "eps", "inner_eps"])
def _batch_channel_kernel(
    mean, var, center, center_var, weight, bias, inner_weight, inner_bias,
    scale_out, offset_out, group_mean, group_var, eps, inner_eps, channels, groups, width,
    group_blocks, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A program takes GROUPS groups of one sample, WIDTH channels of each at a time."""
    n = tl.program_id(0) // group_blocks
    group_ = tl.program_id(0) % group_blocks * GROUPS + tl.arange(0, GROUPS)
    group_mask_ = group_ < groups
    group, group_mask = group_[:, None], group_mask_[:, None]
    place = tl.arange(0, WIDTH)[None, :]
    total = tl.zeros([GROUPS, WIDTH], tl.float32)
    for at in range(0, width, WIDTH):
        mask = group_mask & (at + place < width)
        row = group * width + at + place
        z, _, _ = _z(mean, center, center_var, inner_weight, inner_bias, inner_eps, n, row, mask,
                     channels)  # fmt: skip
        total += tl.where(mask, z, 0.0)
    pooled = (tl.sum(total, 1) / width)[:, None]
    total = tl.zeros([GROUPS, WIDTH], tl.float32)
    for at in range(0, width, WIDTH):
        mask = group_mask & (at + place < width)
        row = group * width + at + place
        z, slope, _ = _z(mean, center, center_var, inner_weight, inner_bias, inner_eps, n, row,
                         mask, channels)  # fmt: skip
        inner = slope * slope * tl.load(var + n * channels + row, mask=mask, other=0.0)
        total += tl.where(mask, inner + (z - pooled) * (z - pooled), 0.0)
    spread = (tl.sum(total, 1) / width)[:, None]
    gain = tl.load(weight + group, mask=group_mask, other=0.0).to(tl.float32)
    gain = gain * (1.0 / tl.sqrt_rn(spread + eps))
    level = tl.load(bias + group, mask=group_mask, other=0.0).to(tl.float32)
    for at in range(0, width, WIDTH):
        mask = group_mask & (at + place < width)
        row = group * width + at + place
        z, slope, _ = _z(mean, center, center_var, inner_weight, inner_bias, inner_eps, n, row,
                         mask, channels)  # fmt: skip
        tl.store(scale_out + n * channels + row, gain * slope, mask=mask)
        tl.store(offset_out + n * channels + row, (z - pooled) * gain + level, mask=mask)
    tl.store(group_mean + n * groups + group, pooled, mask=group_mask)
    tl.store(group_var + n * groups + group, spread, mask=group_mask)


@triton.jit(do_not_specialize=[*_SIZES, "eps", "inner_eps"])
def _batch_channel_backward_kernel(
    mean, var, center, center_var, weight, inner_weight, inner_bias, group_mean, group_var,
    dy_sum, dy_dot, scale_out, dmean_out, dvar_out, dslope_out, dz_out, dweight_out, dbias_out,
    eps, inner_eps, channels, groups, width, group_blocks,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) // group_blocks
    group_ = tl.program_id(0) % group_blocks * GROUPS + tl.arange(0, GROUPS)
    group_mask_ = group_ < groups
    group, group_mask = group_[:, None], group_mask_[:, None]
    place = tl.arange(0, WIDTH)[None, :]
    pooled = tl.load(group_mean + n * groups + group, mask=group_mask, other=0.0)
    spread = tl.load(group_var + n * groups + group, mask=group_mask, other=0.0)
    rstd = 1.0 / tl.sqrt_rn(spread + eps)
    gain = rstd * tl.load(weight + group, mask=group_mask, other=0.0).to(tl.float32)
    sum_gain = tl.zeros([GROUPS, WIDTH], tl.float32)
    sum_total = tl.zeros([GROUPS, WIDTH], tl.float32)
    for at in range(0, width, WIDTH):
        mask = group_mask & (at + place < width)
        row = group * width + at + place
        z, slope, _ = _z(mean, center, center_var, inner_weight, inner_bias, inner_eps, n, row,
                         mask, channels)  # fmt: skip
        total = tl.load(dy_sum + n * channels + row, mask=mask, other=0.0)
        dot = tl.load(dy_dot + n * channels + row, mask=mask, other=0.0)
        sum_gain += tl.where(mask, dot * slope + total * (z - pooled), 0.0)
        sum_total += total
    dgain = tl.sum(sum_gain, 1)[:, None]
    all_total = tl.sum(sum_total, 1)[:, None]
    tl.store(dweight_out + n * groups + group, dgain * rstd, mask=group_mask)
    tl.store(dbias_out + n * groups + group, all_total, mask=group_mask)
    dgroup_mean = -all_total * gain / width
    dgroup_var = -0.5 * dgain * gain * rstd * rstd / width
    for at in range(0, width, WIDTH):
        mask = group_mask & (at + place < width)
        row = group * width + at + place
        here = n * channels + row
        z, slope, centered = _z(mean, center, center_var, inner_weight, inner_bias, inner_eps, n,
                                row, mask, channels)  # fmt: skip
        total = tl.load(dy_sum + here, mask=mask, other=0.0)
        dot = tl.load(dy_dot + here, mask=mask, other=0.0)
        own_var = tl.load(var + here, mask=mask, other=0.0)
        through = dgroup_mean + 2 * dgroup_var * (z - pooled)
        dz = through + total * gain
        dslope = dot * gain + dz * centered + 2 * dgroup_var * slope * own_var
        tl.store(scale_out + here, gain * slope, mask=mask)
        tl.store(dmean_out + here, through * slope, mask=mask)
        tl.store(dvar_out + here, slope * slope * dgroup_var, mask=mask)
        tl.store(dslope_out + here, dslope, mask=mask)
        tl.store(dz_out + here, dz, mask=mask)


@triton.jit(do_not_specialize=[*_SIZES, "inner_eps"])
def _batch_channel_parameters_kernel(
    mean, center, center_var, inner_weight, dslope, dz, dweight, dbias, dmean, dvar,
    dinner_weight, dinner_bias, dgroup_weight, dgroup_bias, inner_eps, samples, channels, groups,
    POOLED: tl.constexpr, TILE_N: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """Sums over samples: the channels' parameters, then the groups'. With POOLED the batch's
    statistics send their gradient on to the rows, whose own the same program then completes."""
    zero = tl.zeros([TILE_C], tl.float32)
    blocks = (channels + TILE_C - 1) // TILE_C
    pid = tl.program_id(0)
    if pid < blocks:
        row = pid * TILE_C + tl.arange(0, TILE_C)
        mask = row < channels
        all_slope = _sum_over_samples(dslope, row, mask, samples, channels, zero, False, TILE_N)
        all_z = _sum_over_samples(dz, row, mask, samples, channels, zero, False, TILE_N)
        rstd = 1.0 / tl.sqrt_rn(tl.load(center_var + row, mask=mask, other=0.0) + inner_eps)
        tl.store(dinner_weight + row, all_slope * rstd, mask=mask)
        tl.store(dinner_bias + row, all_z, mask=mask)
        if POOLED:
            slope = rstd * tl.load(inner_weight + row, mask=mask, other=0.0).to(tl.float32)
            about = tl.load(center + row, mask=mask, other=0.0)[None, :]
            dcenter = (-all_z * slope / samples)[None, :]
            dcenter_var = (-0.5 * all_slope * slope * rstd * rstd / samples)[None, :]
            for at in range(0, samples, TILE_N):
                n = at + tl.arange(0, TILE_N)[:, None]
                here = n * channels + row[None, :]
                both = (n < samples) & mask[None, :]
                away = tl.load(mean + here, mask=both, other=0.0) - about
                old = tl.load(dmean + here, mask=both, other=0.0)
                tl.store(dmean + here, old + dcenter + 2 * dcenter_var * away, mask=both)
                old = tl.load(dvar + here, mask=both, other=0.0)
                tl.store(dvar + here, old + dcenter_var, mask=both)
    else:
        group = (pid - blocks) * TILE_C + tl.arange(0, TILE_C)
        mask = group < groups
        total = _sum_over_samples(dweight, group, mask, samples, groups, zero, False, TILE_N)
        tl.store(dgroup_weight + group, total, mask=mask)
        total = _sum_over_samples(dbias, group, mask, samples, groups, zero, False, TILE_N)
        tl.store(dgroup_bias + group, total, mask=mask)


def _group_tile(groups: int, width: int) -> dict[str, int]:
    """WIDTH channels of GROUPS groups: about 512 numbers, of few different shapes."""
    tile = next(w for w in (4, 16, 64, 512) if w >= min(width, 512))
    return {"GROUPS": max(512 // tile, 1), "WIDTH": tile}


def batch_channel_forward(
    form: BatchChannelForm, mean: Tensor, var: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """`BatchChannelForm.forward`; what it keeps are ``(2, C)`` and ``(2, N, G)`` statistics."""
    parameters = tuple(p.contiguous() for p in parameters)
    samples, channels = mean.shape
    _, batch = _pool(form.pool, mean, var, layer=False)
    assert batch is not None
    width = channels // form.num_groups
    tile = _group_tile(form.num_groups, width)
    blocks = triton.cdiv(form.num_groups, tile["GROUPS"])
    result = mean.new_empty((2, samples, channels))
    pooled = mean.new_empty((2, samples, form.num_groups))
    with _on(mean.device):
        _batch_channel_kernel[(samples * blocks,)](
            mean, var, batch[0], batch[1], *parameters, result[0], result[1], pooled[0], pooled[1],
            form.eps, form.inner_eps, channels, form.num_groups, width, blocks,
            **tile, num_warps=2,
        )  # fmt: skip
    return result[0], result[1], (batch, pooled)


def batch_channel_backward(
    form: BatchChannelForm,
    kept: tuple[Tensor, ...],
    mean: Tensor,
    var: Tensor,
    dy_sum: Tensor,
    dy_dot: Tensor,
    *parameters: Tensor,
) -> Gradients:
    """`BatchChannelForm.backward`."""
    from .closed_forms import Gradients

    weight, _, inner_weight, inner_bias = (p.contiguous() for p in parameters)
    batch, pooled = kept
    samples, channels = mean.shape
    groups = form.num_groups
    width = channels // groups
    tile = _group_tile(groups, width)
    blocks = triton.cdiv(groups, tile["GROUPS"])
    rows = mean.new_empty((5, samples, channels))
    parts = mean.new_empty((2, samples, groups))
    channel_grads = mean.new_empty((2, channels))
    group_grads = mean.new_empty((2, groups))
    sums = _sample_tile(samples)
    programs = triton.cdiv(channels, sums["TILE_C"]) + triton.cdiv(groups, sums["TILE_C"])
    with _on(mean.device):
        _batch_channel_backward_kernel[(samples * blocks,)](
            mean, var, batch[0], batch[1], weight, inner_weight, inner_bias, pooled[0], pooled[1],
            dy_sum.contiguous(), dy_dot.contiguous(), *rows, parts[0], parts[1],
            form.eps, form.inner_eps, channels, groups, width, blocks, **tile, num_warps=2,
        )  # fmt: skip
        _batch_channel_parameters_kernel[(programs,)](
            mean, batch[0], batch[1], inner_weight, rows[3], rows[4], parts[0], parts[1],
            rows[1], rows[2], channel_grads[0], channel_grads[1], group_grads[0], group_grads[1],
            form.inner_eps, samples, channels, groups,
            POOLED=form.pool.depends_on_batch, **sums, num_warps=4,
        )  # fmt: skip
    return Gradients(
        rows[0],
        rows[1],
        rows[2],
        (group_grads[0], group_grads[1], channel_grads[0], channel_grads[1]),
    )
