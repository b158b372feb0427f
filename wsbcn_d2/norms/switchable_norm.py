"""Switchable Normalization (SN).

Reference: P. Luo, R. Zhang, J. Ren, Z. Peng, J. Li, "Switchable Normalization for
Learning-to-Normalize Deep Representation", arXiv:1907.10473, eqs. 3-5. Written from the
mathematics; the authors' code differs in ways that `docs/norms.md` lists.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .normalize import check_input, normalize, normalize_by_running
from .pooling import BatchPool, RunningPool, pool_channels, row_length
from .running_stats import BatchAveraged, frozen
from .sync import Ranks

__all__ = [
    "STATISTICS",
    "SwitchNorm",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "SwitchRule",
]

STATISTICS = ("in", "ln", "bn")


@dataclass
class SwitchRule:
    """SN's rule; see `normalize`. With ``"bn"`` in use it takes a pool's mean and variance.

    Its parameters are weight, bias ``(C,)`` and the controls of the means and of the variances,
    ``(K,)`` or ``(G, K)``.

    Attributes:
        statistics: the K statistics, in the order of the controls.
        used: those whose ratio is not known to be 0.
        eps: added to the mixed variance.
        softmax: whether the controls become ratios by it; they are ratios otherwise.
        unbiased, unbiased_layer: factors of the rows' and of LN's variances.
    """

    statistics: tuple[str, ...]
    used: tuple[str, ...]
    eps: float
    softmax: bool = True
    unbiased: float = 1.0
    unbiased_layer: float = 1.0

    @property
    def fused(self) -> str | None:
        """Its kernels, which have no unbiased variances: `kernels.triton_switch`."""
        return "switch" if self.unbiased == self.unbiased_layer == 1.0 else None

    def __call__(self, mean: Tensor, var: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        mixed, scale, bias = self.about(mean, var, *rest)
        return scale, torch.addcmul(bias, mean - mixed, scale)

    def about(self, mean: Tensor, var: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mixed mean m, the scale and the bias: y = scale * (x - m) + bias."""
        *pooled, weight, bias, mean_control, var_control = rest
        if self.unbiased != 1.0:
            var = var * self.unbiased
        means, variances = [], []
        for name in self.used:
            if name == "in":
                means.append(mean)
                variances.append(var)
            elif name == "ln":
                layer_mean, layer_var = pool_channels(mean, var)
                if self.unbiased_layer != 1.0:
                    layer_var = layer_var * self.unbiased_layer
                means.append(layer_mean)
                variances.append(layer_var)
            else:
                means.append(pooled[0])
                variances.append(pooled[1])
        mixed_var = self._mix(variances, var_control, weight)
        scale = weight * (mixed_var + self.eps).rsqrt()
        return self._mix(means, mean_control, weight), scale, bias

    def _mix(self, parts: list[Tensor], controls: Tensor, weight: Tensor) -> Tensor:
        """The sum of the parts by their ratios, which are numbers or ``(C,)``."""
        ratios = controls.softmax(-1) if self.softmax else controls
        if ratios.dim() == 2:
            ratios = ratios.repeat_interleave(weight.shape[0] // ratios.shape[0], dim=0)
        each = ratios.unbind(-1)
        if len(parts) == len(each) == 2:  # their ratios add up to 1
            return torch.lerp(parts[1], parts[0], each[0])
        if self.used != self.statistics:
            each = tuple(each[self.statistics.index(name)] for name in self.used)
        total = parts[0] * each[0]
        for part, ratio in zip(parts[1:], each[1:], strict=True):
            total = torch.addcmul(total, part, ratio)
        return total


class SwitchNorm(BatchAveraged, nn.Module):
    """SN over ``(N, C, *)``: everything but the input dimension; see `SwitchNorm2d`.

    The classes with a dimension also inherit torch's InstanceNorm: its parameters and running
    statistics are SN's, detectron2 counts its parameters as a norm's (no weight decay), and the
    functions that convert BatchNorm layers leave it alone.
    """

    input_dims: tuple[int, ...]
    default_statistics: tuple[str, ...] = STATISTICS
    _softmax = True
    _warned = False
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
        statistics: Sequence[str] | None = None,
        num_groups: int = 1,
        unbiased: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if statistics is None:
            statistics = self.default_statistics
        chosen = [statistics] if isinstance(statistics, str) else list(statistics)
        if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(STATISTICS):
            raise ValueError(
                f"statistics ({statistics!r}) must be a non-empty choice of {STATISTICS}, each at "
                "most once"
            )
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
            track_running_stats="bn" in chosen,
            device=device,
            dtype=dtype,
        )
        self.statistics = tuple(name for name in STATISTICS if name in chosen)
        self.num_groups = num_groups
        self.unbiased = unbiased
        shape = (len(chosen),) if num_groups == 1 else (num_groups, len(chosen))
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
        return self.mean_weight.softmax(-1), self.var_weight.softmax(-1)

    def used_statistics(self) -> tuple[str, ...]:
        """The statistics that an evaluation forward needs; a subclass may know of fewer."""
        return self.statistics

    def averaged_module(self) -> nn.Module | None:
        return None if self.running_mean is None else self

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        training = self.training and not frozen(self)
        used = self.statistics if training else self.used_statistics()
        if used == ("bn",) and not training:
            return normalize_by_running(input, self, self.mean_weight, self.var_weight)
        pool: BatchPool | RunningPool | None = None
        if "bn" in used:
            pool = self._batch_pool(input) if training else RunningPool(self)
        return normalize(
            input,
            self._rule(used, input),
            self.weight,
            self.bias,
            *self._controls(training),
            pool=pool,
        )

    def _controls(self, training: bool) -> tuple[Tensor, Tensor]:
        return self.mean_weight, self.var_weight

    def _rule(self, used: tuple[str, ...], x: Tensor) -> SwitchRule:
        if not self.unbiased:
            return SwitchRule(self.statistics, used, self.eps, self._softmax)
        layer = _unbiased(self.num_features) if x.dim() == 2 else 1.0
        row = _unbiased(row_length(x))
        return SwitchRule(self.statistics, used, self.eps, self._softmax, row, layer)

    def _batch_pool(self, x: Tensor, ranks: Ranks | None = None) -> BatchPool:
        if ranks is None or ranks.size() == 1:
            self._warn_about_single_images(x)
        positions = row_length(x)
        if not self.unbiased:
            return BatchPool(self, positions, ranks)
        multiplied = "both" if x.dim() == 2 else "none"
        return BatchPool(self, positions, ranks, multiplied, _unbiased(positions))

    def _check_input(self, x: Tensor) -> None:
        check_input(self, x, self.input_dims)
        if x.dim() == 2 and "in" in self.statistics:
            raise ValueError(
                f"{type(self).__name__} got (N, C) input {tuple(x.shape)}, for which the 'in' "
                "statistic does not exist; use statistics=('ln', 'bn') or (N, C, L) input"
            )

    def _warn_about_single_images(self, x: Tensor) -> None:
        if x.shape[0] != 1 or x.dim() == 2 or self._warned:
            return
        if not torch.compiler.is_compiling():  # a warning would split the graph at each norm
            self._warned = True
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


def _unbiased(positions: int) -> float:
    """What makes a variance of so many numbers unbiased; 1 where nothing can."""
    return positions / max(positions - 1, 1)


class SwitchNorm1d(SwitchNorm, nn.InstanceNorm1d):
    """Switchable Normalization of ``(N, C)`` or ``(N, C, L)``; see `SwitchNorm2d`.

    With ``statistics=None`` LN and BN: in (N, C) input IN does not exist.
    """

    input_dims = (2, 3)
    default_statistics = ("ln", "bn")


class SwitchNorm2d(SwitchNorm, nn.InstanceNorm2d):
    r"""Switchable Normalization of ``(N, C, H, W)``.

    .. math:: y = \frac{x - \sum_k p_k \mu_k}{\sqrt{\sum_k q_k \sigma_k^2 + eps}} \cdot w + b,
              \qquad k \in \{IN, LN, BN\}

    with learned ratios p = softmax(``mean_weight``), q = softmax(``var_weight``), uniform at first.
    Variances are biased. Evaluation takes IN and LN from the sample and BN from the running
    statistics: the moving average, or the paper's batch average (`update_batch_average`). A layer
    whose parameters are all frozen uses its evaluation statistics in training too.

    Not with a ``"bn"`` statistic at one image a process (arXiv:1907.10473, Table XI items 4 and
    5): use `SyncSwitchNorm2d` or ``statistics=("in", "ln")`` there.

    Args:
        num_features: C.
        eps: added to the mixed variance.
        momentum: the share of the *new* value in the running statistics (torch's convention; the
            authors' code counts the share kept). None averages all batches plainly.
        statistics: any non-empty subset of ``("in", "ln", "bn")``, in any order; all if None.
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

    input_dims = (4,)


class SwitchNorm3d(SwitchNorm, nn.InstanceNorm3d):
    """Switchable Normalization of ``(N, C, D, H, W)``; see `SwitchNorm2d`."""

    input_dims = (5,)
