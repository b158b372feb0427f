"""Switchable Normalization (SN), and its form synchronized over ranks (SyncSN).

Reference: P. Luo, J. Ren, Z. Peng, R. Zhang, J. Li, "Differentiable Learning-to-Normalize via
Switchable Normalization", arXiv:1806.10779, eqs. 3-5. Written from the mathematics; the authors'
code differs in ways that `docs/norms.md` lists.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .affine import normalize
from .closed_forms import Pool, SwitchForm
from .passes import accumulation_dtype
from .ranks import PoolsOverRanks
from .recall import Recall
from .statistics import (
    RankPool,
    frozen,
    move_running_statistics,
    pool_batch,
    pool_channels,
    pool_ranks,
    pooled_moments,
)

__all__ = [
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "SyncSwitchNorm1d",
    "SyncSwitchNorm2d",
    "SyncSwitchNorm3d",
]

_ORDER = ("in", "ln", "bn")


def _ordered(statistics: Sequence[str]) -> tuple[str, ...]:
    chosen = [statistics] if isinstance(statistics, str) else list(statistics)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(_ORDER):
        raise ValueError(
            f"statistics ({statistics!r}) must be a non-empty choice of {_ORDER}, each at most once"
        )
    return tuple(name for name in _ORDER if name in chosen)


class _SwitchNorm(nn.Module):
    """SN over ``(N, C, *)``: everything but the input dimension; see `SwitchNorm2d`.

    The public classes also inherit torch's InstanceNorm: its parameters and running statistics are
    SN's, detectron2 counts its parameters as a norm's (no weight decay), and the functions that
    convert BatchNorm layers leave it alone.
    """

    _input_dims: tuple[int, ...]
    _version = 2  # torch's norms: 2 brought num_batches_tracked

    num_features: int
    eps: float
    momentum: float | None
    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        statistics: Sequence[str] = _ORDER,
        num_groups: int = 1,
        unbiased: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        statistics = _ordered(statistics)
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(
                f"num_groups ({num_groups}) must divide num_features ({num_features}); "
                f"choose one of {[g for g in range(1, num_features + 1) if num_features % g == 0]}"
            )
        super().__init__(
            num_features,
            eps=eps,
            momentum=momentum,
            affine=True,
            track_running_stats="bn" in statistics,
            device=device,
            dtype=dtype,
        )
        self.statistics = statistics
        self.num_groups = num_groups
        self.unbiased = unbiased
        shape = (len(statistics),) if num_groups == 1 else (num_groups, len(statistics))
        self.mean_weight = nn.Parameter(torch.ones(shape, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.ones(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        if hasattr(self, "mean_weight"):  # the base class calls this before they exist
            nn.init.ones_(self.mean_weight)
            nn.init.ones_(self.var_weight)

    def ratios(self) -> tuple[Tensor, Tensor]:
        """The importance ratios of the means and of the variances, shape ``(K,)`` or ``(G, K)``.

        In the order of ``self.statistics``: a subset of (IN, LN, BN).
        """
        return self._ratios(self.mean_weight, self.var_weight)

    def _ratios(self, mean_weight: Tensor, var_weight: Tensor) -> tuple[Tensor, Tensor]:
        return mean_weight.softmax(-1), var_weight.softmax(-1)

    def _training_ratios(self, mean_weight: Tensor, var_weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._ratios(mean_weight, var_weight)

    def _used_statistics(self) -> tuple[str, ...]:
        """The statistics that an evaluation forward needs; a subclass may know of fewer."""
        return self.statistics

    def _check_input(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.dim() not in self._input_dims:
            raise ValueError(
                f"{name} expects {' or '.join(f'{d}D' for d in self._input_dims)} input, "
                f"got {x.dim()}D of shape {tuple(x.shape)}"
            )
        if x.dim() == 2 and "in" in self.statistics:
            raise ValueError(
                f"{name} got (N, C) input {tuple(x.shape)}, for which the 'in' statistic does not "
                "exist; use statistics=('ln', 'bn') or (N, C, L) input"
            )
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"{name} was made for num_features={self.num_features} channels, "
                f"got {x.shape[1]} (shape {tuple(x.shape)})"
            )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        training = self.training and not frozen(self)
        center = None
        if training:
            self._warn_about_single_images(input)
        elif self._used_statistics() == ("bn",):
            center = self.running_mean  # nothing to read from the input
        positions = 1
        for size in input.shape[2:]:
            positions *= size
        wide = accumulation_dtype(input)
        ratios_of = self._training_ratios if training else self._ratios
        ratios = ratios_of(self.mean_weight.to(wide), self.var_weight.to(wide))
        rule = partial(self._rule, training, positions, input.dim() == 2)
        form = None if center is not None else self._form(training, positions)
        return normalize(input, rule, self.weight, self.bias, *ratios, center=center, form=form)

    def _form(self, training: bool, positions: int) -> SwitchForm | None:
        """`_rule` with its gradient written out; None for what only the rule can do."""
        if self.unbiased:
            return None
        if training:
            pool = Pool("batch", self, positions, partial(self._batch_statistics, positions, False))
            return SwitchForm(self.statistics, self.statistics, self.eps, pool)
        pool = Pool("running", self, positions, self._running_of)
        return SwitchForm(self.statistics, self._used_statistics(), self.eps, pool)

    def _running_of(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self._running(mean.dtype)

    def _rule(
        self,
        training: bool,
        positions: int,
        is_1d: bool,
        mean: Tensor,
        var: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        mean_ratio: Tensor,
        var_ratio: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ratios = self._per_channel(mean_ratio), self._per_channel(var_ratio)
        if var is None:
            pooled = {"bn": self._running(mean.dtype)}
        else:
            pooled = self._pool(training, positions, is_1d, mean, var)
        mixed_mean = mixed_var = torch.zeros((), dtype=mean.dtype, device=mean.device)
        for k, name in enumerate(self.statistics):
            if name in pooled:
                mixed_mean = mixed_mean + ratios[0][..., k] * pooled[name][0]
                mixed_var = mixed_var + ratios[1][..., k] * pooled[name][1]
        scale = weight * (mixed_var + self.eps).rsqrt()
        return scale, (mean - mixed_mean) * scale + bias

    def _per_channel(self, ratio: Tensor) -> Tensor:
        if self.num_groups == 1:
            return ratio
        return ratio.repeat_interleave(self.num_features // self.num_groups, dim=0)

    def _pool(
        self, training: bool, positions: int, is_1d: bool, mean: Tensor, var: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The statistics in use, each ``(mean, var)`` broadcastable to ``(N, C)``."""
        used = self.statistics if training else self._used_statistics()
        if self.unbiased and positions > 1:
            var = var * (positions / (positions - 1))
        pooled = {}
        if "in" in used:
            pooled["in"] = mean, var
        if "ln" in used:
            layer_mean, layer_var = pool_channels(mean, var)
            if self.unbiased and is_1d:
                layer_var = layer_var * (self.num_features / max(self.num_features - 1, 1))
            pooled["ln"] = layer_mean, layer_var
        if "bn" in used:
            if training:
                pooled["bn"] = self._batch_statistics(positions, is_1d, mean, var)
            else:
                pooled["bn"] = self._running(mean.dtype)
        return pooled

    def _running(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None and self.running_var is not None
        return self.running_mean.to(dtype), self.running_var.to(dtype)

    def _batch_statistics(
        self, positions: int, is_1d: bool, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch_mean, batch_var = pool_batch(mean, var)
        samples = mean.shape[0]
        if self.unbiased and is_1d:
            batch_var = batch_var * (samples / max(samples - 1, 1))
        move_running_statistics(self, batch_mean, batch_var, samples * positions)
        return batch_mean, batch_var

    def _warn_about_single_images(self, x: Tensor) -> None:
        if torch.compiler.is_compiling():  # a warning would split the graph at each norm
            return
        if x.shape[0] == 1 and x.dim() > 2 and "bn" in self.statistics:
            warnings.warn(
                f"{type(self).__name__} with a 'bn' statistic trains on one sample: its batch "
                "statistics are instance statistics in training but running ones in evaluation, "
                "so it trains well and tests badly. Use SyncSwitchNorm ('SyncSN') over several "
                "processes, or statistics=('in', 'ln') ('SN_IN_LN').",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"statistics={self.statistics}, num_groups={self.num_groups}"
            + (", unbiased=True" if self.unbiased else "")
        )


class _SyncSwitchNorm(PoolsOverRanks, _SwitchNorm):
    """SN whose BN statistics pool over ranks; see `SyncSwitchNorm2d`."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        statistics: Sequence[str] = _ORDER,
        num_groups: int = 1,
        unbiased: bool = False,
        process_group: dist.ProcessGroup | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, statistics, num_groups, unbiased, device, dtype
        )
        self.process_group = process_group
        self.recall = Recall()

    def pools(self) -> bool:
        return "bn" in self.statistics

    def _batch_statistics(
        self, positions: int, is_1d: bool, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.ranks.size() == 1:
            return super()._batch_statistics(positions, is_1d, mean, var)
        assert self.running_mean is not None
        batch_mean, batch_var, count = pool_ranks(
            mean, var, positions, self.running_mean, self.ranks, self.recall
        )
        batch_var = self._corrected(is_1d, batch_var, count)
        move_running_statistics(self, batch_mean, batch_var, count)
        return batch_mean, batch_var

    def _form(self, training: bool, positions: int) -> SwitchForm | None:
        if not training or self.unbiased or self.ranks.size() == 1 or not self.pools():
            return super()._form(training, positions)
        assert self.running_mean is not None
        over_ranks = RankPool(positions, self.running_mean, self.ranks, self.recall)

        def compute(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            batch_mean, batch_var, count = over_ranks(mean, var)
            move_running_statistics(self, batch_mean, batch_var, count)
            return batch_mean, batch_var

        pool = Pool("ranks", self, positions, compute, over_ranks.average)
        return SwitchForm(self.statistics, self.statistics, self.eps, pool)

    def forward(self, input: Tensor) -> Tensor:
        self.recall.begin()
        return super().forward(input)

    def _corrected(self, is_1d: bool, var: Tensor, count: Tensor) -> Tensor:
        if not (self.unbiased and is_1d):
            return var
        return var * (count / (count - 1).clamp(min=1)).to(var.dtype)

    def absorb(self, sums: Tensor) -> None:
        assert self.running_mean is not None
        mean, var, count = pooled_moments(sums, self.running_mean)
        # The input's dimension is not known here: vectors are what has no "in" statistic.
        is_1d = 2 in self._input_dims and "in" not in self.statistics
        move_running_statistics(self, mean, self._corrected(is_1d, var, count), count)

    def _warn_about_single_images(self, x: Tensor) -> None:
        if self.ranks.size() == 1:
            super()._warn_about_single_images(x)


class SwitchNorm1d(_SwitchNorm, nn.InstanceNorm1d):
    """Switchable Normalization of ``(N, C)`` or ``(N, C, L)``; see `SwitchNorm2d`.

    By default ``statistics=("ln", "bn")``, for (N, C) input, where IN does not exist.
    """

    _input_dims = (2, 3)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        statistics: Sequence[str] = ("ln", "bn"),
        num_groups: int = 1,
        unbiased: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, statistics, num_groups, unbiased, device, dtype
        )


class SwitchNorm2d(_SwitchNorm, nn.InstanceNorm2d):
    r"""Switchable Normalization of ``(N, C, H, W)``.

    .. math:: y = \frac{x - \sum_k p_k \mu_k}{\sqrt{\sum_k q_k \sigma_k^2 + eps}} \cdot w + b,
              \qquad k \in \{IN, LN, BN\}

    with learned ratios p = softmax(``mean_weight``), q = softmax(``var_weight``), uniform at first.
    Variances are biased. Evaluation takes IN and LN from the sample and BN from the running
    statistics: the moving average, or the paper's batch average (`update_batch_average`). A layer
    whose parameters are all frozen uses its evaluation statistics in training too.

    Not with a ``"bn"`` statistic at one image a process (arXiv:1806.10779, Table XI items 4 and
    5): use `SyncSwitchNorm2d` or ``statistics=("in", "ln")`` there.

    Args:
        num_features: C.
        eps: added to the mixed variance.
        momentum: the share of the *new* value in the running statistics (torch's convention; the
            authors' code counts the share kept). None averages all batches plainly.
        statistics: any non-empty subset of ``("in", "ln", "bn")``; its order does not matter.
        num_groups: G; each of G consecutive channel groups gets ratios of its own. The statistics
            stay ungrouped. Divides C.
        unbiased: variances with divisor L - 1, as in the authors' code. For its weights only.

    Attributes:
        weight, bias: ``(C,)``.
        mean_weight, var_weight: ``(K,)``, or ``(G, K)`` with G > 1, in the order (IN, LN, BN).
        running_mean, running_var: ``(C,)``, from (0, 1); None without ``"bn"``.

    Raises:
        ValueError: an empty or unknown ``statistics``, ``num_groups`` that does not divide C, input
            of another dimension or channel count.

    Example::

        >>> norm = SwitchNorm2d(64, statistics=("in", "ln"))
        >>> norm(torch.randn(1, 64, 32, 48)).shape
        torch.Size([1, 64, 32, 48])
    """

    _input_dims = (4,)


class SwitchNorm3d(_SwitchNorm, nn.InstanceNorm3d):
    """Switchable Normalization of ``(N, C, D, H, W)``; see `SwitchNorm2d`."""

    _input_dims = (5,)


class SyncSwitchNorm1d(_SyncSwitchNorm, nn.InstanceNorm1d):
    """SyncSN of ``(N, C)`` or ``(N, C, L)``; see `SyncSwitchNorm2d` and `SwitchNorm1d`."""

    _input_dims = (2, 3)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        statistics: Sequence[str] = ("ln", "bn"),
        num_groups: int = 1,
        unbiased: bool = False,
        process_group: dist.ProcessGroup | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, statistics, num_groups, unbiased, process_group, device,
            dtype,
        )  # fmt: skip


class SyncSwitchNorm2d(_SyncSwitchNorm, nn.InstanceNorm2d):
    """`SwitchNorm2d` whose BN statistics pool over all ranks of ``process_group``.

    In training every forward issues one all_reduce of 2C + 1 numbers and every backward one of 2C;
    evaluation, frozen layers and the recomputation of activation checkpoints issue none, and a
    single process none at all. The result on W ranks equals one process on the joined batch,
    outputs and gradients, also when ranks have different N or H x W (ranks weigh by their
    positions); a rank with N = 0 takes part. Parameter gradients are local ones, for
    DistributedDataParallel to average.

    All ranks must run the layer equally often: a rank that skips it leaves the others waiting,
    unless the model was given to `prepare_sync_norms`.

    Args:
        process_group: the ranks to pool over; the default group if None. The others as in
            `SwitchNorm2d`.

    Raises:
        ValueError: this rank is not in ``process_group``, and as in `SwitchNorm2d`.
    """

    _input_dims = (4,)


class SyncSwitchNorm3d(_SyncSwitchNorm, nn.InstanceNorm3d):
    """SyncSN of ``(N, C, D, H, W)``; see `SyncSwitchNorm2d`."""

    _input_dims = (5,)
