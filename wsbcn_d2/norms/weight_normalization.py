"""Weight Normalization (WN) and Centered WN (CWN), which Weight Standardization is compared with.

References: T. Salimans, D. P. Kingma, "Weight Normalization: A Simple Reparameterization to
Accelerate Training of Deep Neural Networks", arXiv:1602.07868, eq. 2; L. Huang, X. Liu, Y. Liu,
B. Lang, D. Tao, "Centered Weight Normalization in Accelerating Training of Deep Neural Networks",
ICCV 2017.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modes import full_precision
from .weight_standardization import WSConv1d, WSConv2d, WSConv3d, WSConvMixin

__all__ = ["WN_MODES", "WNConv1d", "WNConv2d", "WNConv3d", "WNConvMixin", "normalize_weight"]

WN_MODES = ("wn", "cwn")


def normalize_weight(
    weight: Tensor, length: Tensor, eps: float = 1e-5, centered: bool = False
) -> Tensor:
    r"""Give every filter of a convolution a length that is learned apart from its direction.

    .. math:: \hat w = g \frac{w}{\|w\|} \quad (WN) \qquad or \qquad
              \hat w = g \frac{w - mean(w)}{\|w - mean(w)\|} \quad (CWN)

    CWN with the length :math:`\sqrt{K - 1}` for filters of K weights is weight standardization.

    Args:
        weight: ``(out_channels, in_channels / groups, *kernel)``. Computed in float32 at least,
            returned in its own type.
        length: g, ``(out_channels, 1, *1)``.
        eps: what :math:`\|\cdot\|` is at least; keeps a zero (CWN: constant) filter finite.
        centered: CWN.
    """
    with full_precision(weight.device.type):
        filters = F.normalize(_filters(weight, centered), dim=1, eps=eps).view_as(weight)
        return (filters * length.to(filters.dtype)).to(weight.dtype)


def _filters(weight: Tensor, centered: bool) -> Tensor:
    flat = (weight if weight.dtype == torch.float64 else weight.float()).flatten(1)
    return flat - flat.mean(1, keepdim=True) if centered else flat


class WNConvMixin(WSConvMixin):
    """A convolution with `normalize_weight`: ``weight`` is the direction, ``weight_g`` the length.

    Weights without ``weight_g`` are loaded with the lengths that their filters have, so that WN
    starts as the plain convolution that they come from.
    """

    eps_mode: str = "wn"
    weight_g: nn.Parameter

    def __init__(self, *args: Any, eps_mode: str = "wn", **kwargs: Any) -> None:
        if eps_mode not in WN_MODES:
            known = ", ".join(map(repr, WN_MODES))
            raise ValueError(f"eps_mode ({eps_mode!r}) must be one of {known}")
        super().__init__(*args, **kwargs)
        self.eps_mode = eps_mode
        self.reset_lengths()

    def reset_lengths(self) -> None:
        """Make the lengths those that the filters have, as after another initialization."""
        lengths = self._lengths(self.weight.detach())
        self.weight_g = nn.Parameter(lengths, requires_grad=self.weight.requires_grad)

    def _lengths(self, weight: Tensor) -> Tensor:
        lengths = _filters(weight, self.eps_mode == "cwn").norm(dim=1)
        return lengths.to(weight.dtype).view(-1, *(1,) * (weight.dim() - 1))

    def standardized_weight(self) -> Tensor:
        """`normalize_weight` of the current weight and lengths."""
        return normalize_weight(self.weight, self.weight_g, self.eps, self.eps_mode == "cwn")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and f"{prefix}weight_g" not in state_dict:
            state_dict[f"{prefix}weight_g"] = self._lengths(weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]


class WNConv1d(WNConvMixin, WSConv1d):
    """`WNConv2d` for ``(N, C, L)``."""


class WNConv2d(WNConvMixin, WSConv2d):
    """`torch.nn.Conv2d` with WN or CWN; see `normalize_weight`.

    Takes the arguments of ``torch.nn.Conv2d``, then ``eps``, and ``eps_mode``, "wn" or "cwn", by
    name. Its lengths start as those of its filters.

    Raises:
        ValueError: another ``eps_mode``, or fewer than two weights per filter.
    """


class WNConv3d(WNConvMixin, WSConv3d):
    """`WNConv2d` for ``(N, C, D, H, W)``."""
