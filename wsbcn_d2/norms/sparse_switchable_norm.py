"""Sparse Switchable Normalization (SSN): SN whose ratios become one-hot during training.

Reference: W. Shao, T. Meng, J. Li, R. Zhang, Y. Li, X. Wang, P. Luo, "SSN: Learning Sparse
Switchable Normalization via SparsestMax", arXiv:1903.03793.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .modes import recomputing, tracing
from .sparsemax import circumradius, sparsestmax
from .switchable_norm import STATISTICS, SwitchNorm

__all__ = [
    "SparseSwitchNorm",
    "SparseSwitchNorm1d",
    "SparseSwitchNorm2d",
    "SparseSwitchNorm3d",
]

_UNDECIDED = -1
# The paper prints the circumradius of three choices as 0.8165, a little above its value.
_RADIUS_TOLERANCE = 1e-4


class SparseSwitchNorm(SwitchNorm):
    """SN with sparsestmax ratios; see `SparseSwitchNorm2d`."""

    _softmax = False
    radius: Tensor
    mean_fixed: Tensor
    var_fixed: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        statistics: Sequence[str] = STATISTICS,
        num_groups: int = 1,
        unbiased: bool = False,
        radius: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, statistics, num_groups, unbiased, device, dtype
        )
        self.register_buffer("radius", torch.zeros((), device=device))
        decided = torch.full((num_groups,), _UNDECIDED, dtype=torch.long, device=device)
        self.register_buffer("mean_fixed", decided)
        self.register_buffer("var_fixed", decided.clone())
        self._used_cache: tuple[Any, tuple[str, ...]] | None = None
        self.set_radius(radius)

    def set_radius(self, radius: float) -> None:
        """Set the radius: from 0 at the start of training to the circumradius at its end.

        Raises:
            ValueError: ``radius`` is not within [0, sqrt((K - 1) / K)].
        """
        limit = circumradius(len(self.statistics))
        if not 0 <= radius <= limit + _RADIUS_TOLERANCE:
            raise ValueError(
                f"radius ({radius}) must be from 0 to {limit:.6g}, the circumradius of the simplex "
                f"of {len(self.statistics)} statistics"
            )
        self.radius.fill_(min(radius, limit))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "mean_fixed"):
            self.mean_fixed.fill_(_UNDECIDED)
            self.var_fixed.fill_(_UNDECIDED)

    def ratios(self) -> tuple[Tensor, Tensor]:
        return self._ratios(fix=False)

    def _controls(self, training: bool) -> tuple[Tensor, Tensor]:
        return self._ratios(fix=training and not recomputing())

    def _ratios(self, fix: bool) -> tuple[Tensor, Tensor]:
        """The ratios; with ``fix`` those that are one-hot now become fixed first."""
        controls = torch.stack([self.mean_weight, self.var_weight])
        fixed = torch.stack([self.mean_fixed, self.var_fixed]).reshape(controls.shape[:-1])
        # The buffer's type may round the limit down (float16 does so by 1e-4), and the last ratio
        # would stay just short of one-hot.
        last = circumradius(len(self.statistics)) - torch.finfo(self.radius.dtype).eps
        free = sparsestmax(controls, torch.where(self.radius >= last, 1.0, self.radius))
        if fix:
            with torch.no_grad():
                # In float32: float64 tells a last bit from one-hot.
                largest, choice = free.float().max(-1)
                fixed = torch.where((fixed < 0) & (largest == 1), choice, fixed)
                self.mean_fixed.copy_(fixed[0].reshape(-1))
                self.var_fixed.copy_(fixed[1].reshape(-1))
        chosen = torch.arange(controls.shape[-1], device=controls.device)
        one_hot = (fixed.unsqueeze(-1) == chosen).to(free.dtype)
        ratios = torch.where(fixed.unsqueeze(-1) >= 0, one_hot, free)
        return ratios[0], ratios[1]

    def used_statistics(self) -> tuple[str, ...]:
        """Only what a fixed or one-hot ratio selects. Looked up once per change of the buffers."""
        buffers = (self.mean_fixed, self.var_fixed)
        # Tensors of the meta device and of inference mode do not tell.
        if tracing() or any(t.is_meta or t.is_inference() for t in buffers):
            return self.statistics
        key = tuple((t.data_ptr(), t._version) for t in buffers)
        if self._used_cache is None or self._used_cache[0] != key:
            choices = torch.cat(buffers).unique().tolist()
            used = self.statistics
            if _UNDECIDED not in choices:
                used = tuple(self.statistics[k] for k in choices)
            self._used_cache = (key, used)
        return self._used_cache[1]

    def extra_repr(self) -> str:
        radius = "?" if self.radius.is_meta else f"{float(self.radius):.4g}"
        return f"{super().extra_repr()}, radius={radius}"


class SparseSwitchNorm1d(SparseSwitchNorm, nn.InstanceNorm1d):
    """SSN of ``(N, C)`` or ``(N, C, L)``; see `SparseSwitchNorm2d` and `SwitchNorm1d`."""

    input_dims = (2, 3)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        statistics: Sequence[str] = ("ln", "bn"),
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, statistics, *args, **kwargs)


class SparseSwitchNorm2d(SparseSwitchNorm, nn.InstanceNorm2d):
    """`SwitchNorm2d` with `sparsestmax` in the place of softmax.

    The radius grows over training (`set_radius`) from 0 to the simplex's circumradius, where every
    ratio is one-hot. A ratio that is one-hot in a training forward is fixed from then on: its
    control parameters keep their values and get zero gradient. A layer with hard ratios reads in
    evaluation only the statistics that it selected; one that selected BN twice is a plain affine.

    Args:
        radius: from 0 to sqrt((K - 1) / K) for K statistics (K = 3: 0.8165). The others as in
            `SwitchNorm2d`.

    Attributes:
        radius: 0-dim buffer.
        mean_fixed, var_fixed: ``(num_groups,)`` int64 buffers: the index of the statistic that the
            ratio is fixed to, or -1.

    Raises:
        ValueError: ``radius`` out of range, and as in `SwitchNorm2d`.
    """

    input_dims = (4,)


class SparseSwitchNorm3d(SparseSwitchNorm, nn.InstanceNorm3d):
    """SSN of ``(N, C, D, H, W)``; see `SparseSwitchNorm2d`."""

    input_dims = (5,)
