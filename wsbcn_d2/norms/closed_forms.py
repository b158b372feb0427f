"""The rules of SN and BCN with their gradients written out.

A *form* does for a norm what a rule does (see `affine`), and also takes the gradient of it, without
autograd: on row statistics of N x C numbers the cost is that of the number of operators, and of
what they keep. A form keeps the row statistics and smaller numbers only.

With y = scale * (x - mean) + offset, a form's backward gets ``dy_sum`` and ``dy_dot``, the sums
over each row of dy and of dy * (x - mean), and returns the gradients of the row's own mean and
variance, dy_sum's share through ``- scale * mean`` included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .passes import kernels_for

__all__ = ["BatchChannelForm", "Form", "Gradients", "Pool", "SwitchForm"]


class Pool(NamedTuple):
    """A layer's statistics over the batch, ``(C,)`` each, from those of rows.

    Attributes:
        kind: "running": the running ones, which ``compute`` may have moved. "batch": the batch's,
            "unbiased": the same, but the running variance is unbiased; both move the running ones.
            "estimate": the running ones, moved first. "ranks": those of all ranks.
        module: has ``running_mean``, ``running_var``, ``num_batches_tracked``, ``momentum``.
        positions: L.
        compute: does it: ``(mean, var)`` of rows to those of channels.
        over_ranks: for "ranks", as `RankPool.average`.
    """

    kind: str
    module: nn.Module
    positions: int
    compute: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    over_ranks: Callable[[Tensor], Tensor] | None = None

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Statistics that no later forward changes."""
        pooled = self.compute(mean, var)
        return pooled if self.depends_on_batch else (pooled[0].clone(), pooled[1].clone())

    @property
    def depends_on_batch(self) -> bool:
        """Whether a gradient flows through them."""
        return self.kind in ("batch", "unbiased", "ranks")

    def average(self, sums: Tensor, samples: int) -> Tensor:
        """One row's share of the gradients whose sums over this batch's rows are given."""
        return sums / max(samples, 1) if self.over_ranks is None else self.over_ranks(sums)

    def unbias(self, samples: int) -> float:
        """The running variance's factor."""
        count = samples * self.positions
        return count / max(count - 1, 1) if self.kind == "unbiased" else 1.0


class Gradients(NamedTuple):
    """What a form's backward returns: ``(N, C)`` each, and the parameters' in their shapes."""

    scale: Tensor
    dmean: Tensor
    dvar: Tensor
    parameters: tuple[Tensor, ...]


class Form(Protocol):
    """A rule and its gradient."""

    def forward(
        self, mean: Tensor, var: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """``scale, offset`` and the tensors that `backward` wants to see again."""

    def backward(
        self,
        kept: tuple[Tensor, ...],
        mean: Tensor,
        var: Tensor,
        dy_sum: Tensor,
        dy_dot: Tensor,
        *parameters: Tensor,
    ) -> Gradients:
        """The gradients for those of y."""


class SwitchForm(NamedTuple):
    """SN: ``parameters`` are weight, bias ``(C,)`` and the ratios of the means and the variances.

    Attributes:
        statistics: the order of the ratios, of "in", "ln", "bn"; ratios are ``(K,)`` or ``(G, K)``.
        used: those that are not known to have ratio 0.
        eps: added to the mixed variance.
        pool: BN's statistics.
    """

    statistics: tuple[str, ...]
    used: tuple[str, ...]
    eps: float
    pool: Pool

    def forward(
        self, mean: Tensor, var: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if kernels := _kernels(mean, self.pool):
            return kernels.switch_forward(self, mean, var, *parameters)
        weight, bias, mean_ratio, var_ratio = parameters
        moments = torch.stack([mean, var])
        kept: list[Tensor] = []
        if "ln" in self.used:
            kept.append(torch.stack(_over(1, mean, var)))
        if "bn" in self.used:
            kept.append(torch.stack(self.pool(mean, var)).unsqueeze(1))
        mixed = self._mix(moments, kept, self._ratios(mean_ratio, var_ratio, mean.shape[1]))
        scale = mixed[1].add_(self.eps).rsqrt_().mul_(weight)
        offset = torch.addcmul(bias, mean - mixed[0], scale)
        return scale, offset, tuple(kept)

    def _ratios(self, mean_ratio: Tensor, var_ratio: Tensor, channels: int) -> dict[str, Tensor]:
        """Of each statistic in use, the mean's and the variance's: ``(2, 1, 1)``, ``(2, 1, C)``."""
        ratios = torch.stack([mean_ratio, var_ratio]).unsqueeze(1)
        if ratios.dim() == 3:
            ratios = ratios.unsqueeze(1)
        else:
            ratios = ratios.repeat_interleave(channels // ratios.shape[2], dim=2)
        return {name: ratios[..., self.statistics.index(name)] for name in self.used}

    def _mix(self, moments: Tensor, kept: Sequence[Tensor], ratios: dict[str, Tensor]) -> Tensor:
        """Means and variances, mixed: ``(2, N, C)``, a new tensor."""
        pooled = iter(kept)
        mixed = moments * ratios["in"] if "in" in self.used else torch.zeros_like(moments)
        for name in self.used:
            if name != "in":
                mixed.addcmul_(next(pooled), ratios[name])
        return mixed

    def backward(
        self,
        kept: tuple[Tensor, ...],
        mean: Tensor,
        var: Tensor,
        dy_sum: Tensor,
        dy_dot: Tensor,
        *parameters: Tensor,
    ) -> Gradients:
        if kernels := _kernels(mean, self.pool):
            return kernels.switch_backward(self, kept, mean, var, dy_sum, dy_dot, *parameters)
        weight, _, mean_ratio, var_ratio = parameters
        count, channels = mean.shape
        moments = torch.stack([mean, var])
        ratios = self._ratios(mean_ratio, var_ratio, channels)
        mixed = self._mix(moments, kept, ratios)
        rstd = mixed[1].add_(self.eps).rsqrt_()
        scale = rstd * weight
        dscale = torch.addcmul(dy_dot, dy_sum, mean - mixed[0])
        dbias, dweight = dy_sum.sum(0), (dscale * rstd).sum(0)
        # Of the mixed mean and variance. The row's own mean enters the offset by + scale, y by
        # - scale: what is left of it is its part in the mixture.
        dmixed = torch.empty_like(moments)
        torch.mul(dy_sum, scale, out=dmixed[0]).neg_()
        torch.mul(dscale.mul_(scale), rstd.square_().mul_(-0.5), out=dmixed[1])
        own = "in" in self.used
        dmoments = dmixed * ratios["in"] if own else torch.zeros_like(dmixed)
        dratios: dict[str, Tensor] = {}  # (2, C) each
        pooled = iter(kept)
        for name in self.used:
            part = moments if name == "in" else next(pooled)
            dratios[name] = (dmixed * part).sum(1)
            if name == "in" or (name == "bn" and not self.pool.depends_on_batch):
                continue
            through = dmixed * ratios[name]
            if name == "ln":
                through = through.sum(2, keepdim=True).div_(channels)
            else:
                through = self.pool.average(through.sum(1, keepdim=True), count)
            dmoments.add_(through)
            dmoments[0].addcmul_(mean - part[0], through[1], value=2)
        return Gradients(
            scale,
            dmoments[0],
            dmoments[1],
            (dweight, dbias, *self._sum_to(mean_ratio, dratios)),
        )

    def _sum_to(self, ratio: Tensor, dratios: dict[str, Tensor]) -> Tensor:
        """The gradients of both ratios from those of each channel's; unused ones have none."""
        zero = torch.zeros_like(next(iter(dratios.values())))
        parts = torch.stack([dratios.get(name, zero) for name in self.statistics], -1)
        if ratio.dim() == 1:
            return parts.sum(1)
        return parts.unflatten(1, (ratio.shape[0], -1)).sum(2)


class BatchChannelForm(NamedTuple):
    """BCN: ``parameters`` are the groups' weight, bias ``(G,)`` and the channels' ``(C,)``.

    Attributes:
        num_groups: G.
        eps, inner_eps: of the channel and of the inner normalization.
        pool: the inner normalization's statistics.
    """

    num_groups: int
    eps: float
    inner_eps: float
    pool: Pool

    def forward(
        self, mean: Tensor, var: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if kernels := _kernels(mean, self.pool):
            return kernels.batch_channel_forward(self, mean, var, *parameters)
        weight, bias, inner_weight, inner_bias = parameters
        center, center_var = self.pool(mean, var)
        slope = self._slope(center_var, inner_weight)
        # z = slope * (x - center) + inner_bias: its row statistics follow from those of x.
        z_mean = torch.addcmul(inner_bias, mean - center, slope)
        groups = (self.num_groups, -1)
        z_mean, z_var = (t.unflatten(1, groups) for t in (z_mean, slope.square() * var))
        group_mean, group_var = _over(2, z_mean, z_var)
        gain = group_var.add(self.eps).rsqrt_().mul_(weight.unsqueeze(1))
        scale = gain * slope.unflatten(0, groups)
        offset = torch.addcmul(bias.unsqueeze(1), z_mean - group_mean, gain)
        kept = center, center_var, group_mean, group_var
        return scale.flatten(1), offset.flatten(1), kept

    def _slope(self, center_var: Tensor, inner_weight: Tensor) -> Tensor:
        return (center_var + self.inner_eps).rsqrt_().mul_(inner_weight)

    def backward(
        self,
        kept: tuple[Tensor, ...],
        mean: Tensor,
        var: Tensor,
        dy_sum: Tensor,
        dy_dot: Tensor,
        *parameters: Tensor,
    ) -> Gradients:
        if kernels := _kernels(mean, self.pool):
            return kernels.batch_channel_backward(
                self, kept, mean, var, dy_sum, dy_dot, *parameters
            )
        weight, _, inner_weight, inner_bias = parameters
        center, center_var, group_mean, group_var = kept
        groups = (self.num_groups, -1)
        slope = self._slope(center_var, inner_weight)
        # In float (N, G, C / G) from here on: a group's numbers lie together.
        centered, var_, dot, total = (
            t.unflatten(1, groups) for t in (mean - center, var, dy_dot, dy_sum)
        )
        slope_ = slope.unflatten(0, groups)
        z_centered = torch.addcmul(inner_bias.unflatten(0, groups), centered, slope_) - group_mean
        rstd = group_var.add(self.eps).rsqrt_()
        gain = rstd * weight.unsqueeze(1)
        size = centered.shape[2]

        dgain = torch.addcmul(dot * slope_, total, z_centered).sum(2, keepdim=True)
        dbias = total.sum((0, 2))
        dweight = (dgain * rstd).sum((0, 2))
        dgroup_mean = total.sum(2, keepdim=True).mul_(gain).div_(-size)
        dgroup_var = (dgain * gain * rstd.square()).mul_(-0.5 / size)
        # What comes back through the groups' statistics; z's own share of y comes on top of it.
        through = torch.addcmul(dgroup_mean, z_centered, dgroup_var, value=2)
        dz_mean = torch.addcmul(through, total, gain)
        dslope = (dot * gain).addcmul_(dz_mean, centered)
        dslope.addcmul_(slope_ * var_, dgroup_var, value=2)
        dslope, dinner_bias = (t.flatten(1).sum(0) for t in (dslope, dz_mean))
        inner_rstd = (center_var + self.inner_eps).rsqrt_()
        dmean = (through * slope_).flatten(1)
        dvar = (slope_.square() * dgroup_var).flatten(1)
        if self.pool.depends_on_batch:
            dcenter = (dinner_bias * slope).neg_()
            dcenter_var = (dslope * slope * inner_rstd.square()).mul_(-0.5)
            sums = torch.stack([dcenter, dcenter_var])
            dcenter, dcenter_var = self.pool.average(sums, mean.shape[0])
            dmean.add_(dcenter).addcmul_(mean - center, dcenter_var, value=2)
            dvar.add_(dcenter_var)
        return Gradients(
            (gain * slope_).flatten(1),
            dmean,
            dvar,
            (dweight, dbias, dslope.mul_(inner_rstd), dinner_bias),
        )


def _kernels(mean: Tensor, pool: Pool) -> ModuleType | None:
    """`triton_forms` where it runs."""
    if (
        pool.kind == "ranks"
        or mean.dtype != torch.float32
        or mean.numel() == 0
        or kernels_for(mean.device) is None
    ):
        return None
    from . import triton_forms

    return triton_forms


def _over(dim: int, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled over ``dim``, which is kept, by the law of total variance."""
    if mean.numel() == 0:  # var_mean warns
        return mean.sum(dim, keepdim=True), var.sum(dim, keepdim=True)
    spread, pooled = torch.var_mean(mean, dim, correction=0, keepdim=True)
    return pooled, spread.add_(var.mean(dim, keepdim=True))
