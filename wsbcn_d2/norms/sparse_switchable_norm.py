"""Sparse Switchable Normalization (SSN): SN whose ratios become one-hot during training.

Reference: W. Shao, T. Meng, J. Li, R. Zhang, Y. Li, X. Wang, P. Luo, "SSN: Learning Sparse
Switchable Normalization via SparsestMax", arXiv:1903.03793.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .modes import optimizer_steps, recomputing, tracing, without_grad
from .sparsemax import circumradius, sparsestmax, sparsestmax_jacobian
from .switchable_norm import SwitchNorm

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
        statistics: Sequence[str] | None = None,
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
        self._cache: _Cache | None = None
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
        return self._ratios(self._stacked(), fix=False).unbind(0)  # type: ignore[return-value]

    def _stacked(self) -> Tensor:
        controls = torch.stack([self.mean_weight, self.var_weight])
        return controls if controls.dtype == torch.float64 else controls.float()

    def _controls(self, training: bool) -> tuple[Tensor, Tensor]:
        """The ratios, computed once per change of what they come from."""
        fix = training and not recomputing()
        state = (self.mean_weight, self.var_weight, self.radius, self.mean_fixed, self.var_fixed)
        # Tensors of the meta device and of inference mode do not tell.
        if tracing() or any(t.is_meta or t.is_inference() for t in state):
            return self._ratios(self._stacked(), fix).unbind(0)  # type: ignore[return-value]
        if self._cache is None or self._cache.key != _key(state) or fix > self._cache.fixed:
            with without_grad(), torch.no_grad():
                controls = self._stacked()
                ratios = self._ratios(controls, fix)
                slopes = sparsestmax_jacobian(controls, ratios, self._radius())
                decided = torch.stack([self.mean_fixed, self.var_fixed]).view(ratios.shape[:-1])
                slopes.masked_fill_((decided >= 0)[..., None, None], 0)
            self._cache = _Cache(_key(state), fix, ratios, slopes, [t.detach() for t in state])
        if torch.is_grad_enabled():
            # apply() is not annotated
            both: tuple[Tensor, Tensor] = _Ratios.apply(
                self.mean_weight, self.var_weight, self, self._cache
            )
            return both
        return self._cache.ratios[0], self._cache.ratios[1]

    def _radius(self) -> Tensor:
        # The buffer's type may round the limit down (float16 does so by 1e-4), and the last ratio
        # would stay just short of one-hot.
        last = circumradius(len(self.statistics)) - torch.finfo(self.radius.dtype).eps
        return torch.where(self.radius >= last, 1.0, self.radius)

    def _ratios(self, controls: Tensor, fix: bool) -> Tensor:
        """Those of ``(2, K)`` or ``(2, G, K)`` controls; with ``fix`` one-hot ones become fixed."""
        fixed = torch.stack([self.mean_fixed, self.var_fixed]).reshape(controls.shape[:-1])
        free = sparsestmax(controls, self._radius())
        if fix:
            with torch.no_grad():
                # In float32: float64 tells a last bit from one-hot.
                largest, choice = free.float().max(-1)
                fixed = torch.where((fixed < 0) & (largest == 1), choice, fixed)
                self.mean_fixed.copy_(fixed[0].reshape(-1))
                self.var_fixed.copy_(fixed[1].reshape(-1))
        chosen = torch.arange(controls.shape[-1], device=controls.device)
        one_hot = (fixed.unsqueeze(-1) == chosen).to(free.dtype)
        return torch.where(fixed.unsqueeze(-1) >= 0, one_hot, free)

    def used_statistics(self) -> tuple[str, ...]:
        """Only what a fixed or one-hot ratio selects. Looked up once per change of the buffers."""
        buffers = (self.mean_fixed, self.var_fixed)
        # Tensors of the meta device and of inference mode do not tell.
        if tracing() or any(t.is_meta or t.is_inference() for t in buffers):
            return self.statistics
        key = _key(buffers)
        if self._used_cache is None or self._used_cache[0] != key:
            choices = torch.cat(buffers).unique().tolist()
            used = self.statistics
            if _UNDECIDED not in choices:
                used = tuple(self.statistics[k] for k in choices)
            self._used_cache = (key, used)
        return self._used_cache[1]

    def train(self, mode: bool = True) -> Any:
        self._cache = None  # a write through ``.data`` is invisible; this is how to announce it
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's tensors are others, and may come to lie where these did.
        return {**self.__dict__, "_cache": None, "_used_cache": None}

    def extra_repr(self) -> str:
        radius = "?" if self.radius.is_meta else f"{float(self.radius):.4g}"
        return f"{super().extra_repr()}, radius={radius}"


class _Cache(NamedTuple):
    key: Any
    fixed: bool  # whether one-hot ratios were fixed
    ratios: Tensor
    slopes: Tensor
    source: list[Tensor]  # kept so that no other tensor comes to lie at its address


def _key(tensors: Sequence[Tensor]) -> Any:
    return (optimizer_steps(), *((t.data_ptr(), t._version, t.dtype) for t in tensors))


class _Ratios(torch.autograd.Function):
    """Cached ratios and their gradient."""

    @staticmethod
    def forward(
        ctx: Any, mean_weight: Tensor, var_weight: Tensor, layer: SparseSwitchNorm, cache: _Cache
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mean_weight, var_weight, cache.slopes)
        ctx.layer = layer
        return cache.ratios[0].detach(), cache.ratios[1].detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mean_weight, var_weight, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            leaves = [mean_weight, var_weight]
            controls = torch.stack(leaves)
            controls = controls if controls.dtype == torch.float64 else controls.float()
            ratios = ctx.layer._ratios(controls, fix=False)
            return (
                *torch.autograd.grad(ratios, leaves, torch.stack(grads), create_graph=True),
                None,
                None,
            )
        found = (torch.stack(grads).unsqueeze(-2) @ slopes).squeeze(-2).to(mean_weight.dtype)
        return found[0], found[1], None, None


class SparseSwitchNorm1d(SparseSwitchNorm, nn.InstanceNorm1d):
    """SSN of ``(N, C)`` or ``(N, C, L)``; see `SparseSwitchNorm2d` and `SwitchNorm1d`."""

    input_dims = (2, 3)
    default_statistics = ("ln", "bn")


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
