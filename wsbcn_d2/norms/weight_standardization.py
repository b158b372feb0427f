"""Weight Standardization (WS): convolutions whose filters have zero mean and unit variance.

Reference: S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille, "Weight Standardization",
arXiv:1903.10520, eqs. 3-5. Authors' code: https://github.com/joe-siyuan-qiao/WeightStandardization
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .kernels import input_gradient, moments, reduce_gradient, transform, triton_weights_for
from .modes import full_precision, optimizer_steps, tracing, without_grad

__all__ = [
    "EPS_MODES",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSConvMixin",
    "check_weight_shape",
    "standardize_weight",
]

EPS_MODES = ("outside", "inside")

# Weights up to this many elements are standardized in plain operators.
_SMALL = 65536
_TINY = 1e-30


def standardize_weight(weight: Tensor, eps: float = 1e-5, eps_mode: str = "outside") -> Tensor:
    r"""Standardize every filter of a convolution over its K = (in / groups) * kh * kw weights.

    .. math:: \hat w = \frac{w - mean(w)}{std(w) + eps} \quad (outside) \qquad or \qquad
              \hat w = \frac{w - mean(w)}{\sqrt{var(w) + eps}} \quad (inside)

    std and var are unbiased (divisor K - 1). ``"outside"`` is the WS release and mmdetection,
    ``"inside"`` the BCN release. On filters of ordinary size they differ by some 1e-3; a model
    trained with one is evaluated with the same.

    Args:
        weight: ``(out_channels, in_channels / groups, *kernel)``, K >= 2. Computed in float32 at
            least, returned in its own type.
        eps: keeps a constant filter finite (it becomes zero, with a finite gradient).
        eps_mode: ``"outside"`` or ``"inside"``.

    Raises:
        ValueError: K < 2, or an unknown ``eps_mode``.
    """
    check_weight_shape(weight.shape, eps_mode)
    if tracing():
        return _compose(weight, eps, eps_mode)
    with full_precision(weight.device.type):
        if torch.is_grad_enabled() and weight.requires_grad:
            return _Standardize.apply(weight, eps, eps_mode, None)
        return _standardize(weight, eps, eps_mode)[0]


def check_weight_shape(shape: torch.Size | tuple[int, ...], eps_mode: str) -> None:
    """Raise the ValueError that `standardize_weight` documents, before any weight exists."""
    if eps_mode not in EPS_MODES:
        raise ValueError(
            f"eps_mode ({eps_mode!r}) must be one of {', '.join(map(repr, EPS_MODES))}"
        )
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    if fan_in < 2:
        raise ValueError(
            f"weight standardization needs at least 2 weights per filter, got weight shape "
            f"{tuple(shape)}: a single weight standardizes to 0/0. Keep such a convolution (for "
            "example depthwise 1x1) plain"
        )


def _divisor(var: Tensor, eps: float, eps_mode: str) -> tuple[Tensor, Tensor]:
    """What divides the centred filters of this unbiased variance, and the gradient's root."""
    if eps_mode == "inside":
        root = (var + eps).sqrt()
        return root, root
    # The root of 0 has no finite slope: a constant filter passes none.
    root = torch.where(var > 0, var, torch.ones_like(var)).sqrt()
    return torch.where(var > 0, root, torch.zeros_like(root)) + eps, root


def _compose(weight: Tensor, eps: float, eps_mode: str) -> Tensor:
    wide = weight if weight.dtype == torch.float64 else weight.float()
    flat = wide.flatten(1)
    centered = flat - flat.mean(1, keepdim=True)
    var = centered.square().sum(1, keepdim=True) / (flat.shape[1] - 1)
    divisor, _ = _divisor(var, eps, eps_mode)
    return (centered / divisor).view_as(wide).to(weight.dtype)


class _Standardize(torch.autograd.Function):
    """The standardized weight, computed or (from a cache) only handed on, and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        eps: float,
        eps_mode: str,
        cached: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor:
        standardized, denominator, root = cached or _standardize(weight, eps, eps_mode)
        ctx.save_for_backward(weight, standardized, denominator, root)
        ctx.eps, ctx.eps_mode = eps, eps_mode
        return standardized.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, standardized, denominator, root = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            with torch.enable_grad():
                again = _compose(weight, ctx.eps, ctx.eps_mode)
            return torch.autograd.grad(again, weight, grad, create_graph=True)[0], None, None, None
        if kernels := triton_weights_for(weight):
            dweight = kernels.standardize_backward(grad, standardized, denominator, root)
            return dweight, None, None, None
        if _is_small(weight):
            g, hat = grad.flatten(1), standardized.flatten(1)
            along = (g * hat).sum(1, keepdim=True).div_(root).mul_(1 / (1 - hat.shape[1]))
            dweight = (g - g.mean(1, keepdim=True)).div_(denominator).addcmul_(hat, along)
            return dweight.view_as(weight), None, None, None
        # d std = sum(centred * d centred) / ((K - 1) * root), and hat sums to zero.
        dy, hat = _rows(grad), _rows(standardized)
        count, zero = hat.shape[2], torch.zeros_like(root)
        total, along = reduce_gradient(dy, hat, zero)
        dvar = along.div_(root).mul_(-count / (2 * (count - 1)))
        dweight = input_gradient(dy, hat, zero, 1 / denominator, -total / denominator, dvar)
        return dweight.view_as(weight), None, None, None


def _standardize(weight: Tensor, eps: float, eps_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    if kernels := triton_weights_for(weight):
        return kernels.standardize(weight.detach(), eps, eps_mode == "inside")
    if _is_small(weight):
        flat = weight.detach().flatten(1)
        var, mean = torch.var_mean(flat, 1, keepdim=True)
        if eps_mode == "inside":
            divisor = root = var.add_(eps).sqrt_()
        else:  # a constant filter is zero, and passes no gradient through its root
            root = var.sqrt_()
            divisor = root + eps
            root.clamp_(min=_TINY)
        return (flat - mean).div_(divisor).view(weight.shape), divisor, root
    rows = _rows(weight.detach())
    mean, var = moments(rows)
    count = rows.shape[2]
    divisor, root = _divisor(var * (count / (count - 1)), eps, eps_mode)
    standardized = transform(rows, mean, 1 / divisor, torch.zeros_like(mean))
    return standardized.view(weight.shape), divisor, root


def _is_small(weight: Tensor) -> bool:
    """Whether plain operators take less time than the passes, which are for large weights."""
    return (
        weight.numel() <= _SMALL
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
    )


def _rows(weight: Tensor) -> Tensor:
    """The filters as the channels of one sample, ``(1, O, K)``."""
    return weight.flatten(1).unsqueeze(0)


class WSConvMixin:
    """The standardized weight of a convolution, computed once per change of the weight.

    A weight counts as changed when any optimizer has stepped, when torch's version counter moved
    (``load_state_dict``, ``init`` functions, any in-place operator), when it is another tensor
    (``.to()``, a swap) or put in place again (``fully_shard`` gathers it for each forward), and on
    ``train()`` and ``eval()``. A write through ``weight.data`` or by a collective
    (``dist.broadcast``) is invisible to torch: call ``train()`` or ``eval()`` after one.
    """

    weight: Tensor
    eps: float = 1e-5
    eps_mode: str = "outside"

    def standardized_weight(self) -> Tensor:
        """`standardize_weight` of the current weight, differentiable where that requires grad."""
        weight = self.weight
        # Neither a tensor made in inference mode nor one without storage shows its changes.
        if tracing() or weight.is_inference() or weight.is_meta:
            return standardize_weight(weight, self.eps, self.eps_mode)
        key = (optimizer_steps(), weight._version, weight.data_ptr(), weight.dtype, weight.device,
               weight.shape, self.eps, self.eps_mode)  # fmt: skip
        cache = self.__dict__.get("_standardized")
        if cache is None or cache[0] != key:
            self.__dict__["_standardized"] = None  # free the old one first
            with without_grad(), full_precision(weight.device.type):
                # The weight is kept so that no other can come to lie at its address.
                cache = (key, _standardize(weight, self.eps, self.eps_mode), weight.detach())
            self.__dict__["_standardized"] = cache
        if torch.is_grad_enabled() and weight.requires_grad:
            return _Standardize.apply(weight, self.eps, self.eps_mode, cache[1])
        return cache[1][0]

    def __setattr__(self, name: str, value: Any) -> None:
        # fully_shard puts the weight in place anew for each forward: one tensor, whose version and,
        # by chance, address are those of the values before.
        if name == "weight":
            self.__dict__.pop("_standardized", None)
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Any:
        self.__dict__.pop("_standardized", None)
        return super().train(mode)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled module standardizes its own weight.
        state = self.__dict__.copy()
        state.pop("_standardized", None)
        return state

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}, eps_mode={self.eps_mode!r}"  # type: ignore[misc]


class _WSConv(WSConvMixin):
    def __init__(
        self, *args: Any, eps: float = 1e-5, eps_mode: str = "outside", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_weight_shape(self.weight.shape, eps_mode)
        self.eps = eps
        self.eps_mode = eps_mode

    def forward(self, input: Tensor) -> Tensor:
        # torch's own convolution, padding modes included, on the standardized weight.
        return self._conv_forward(input, self.standardized_weight(), self.bias)  # type: ignore[attr-defined]


class WSConv1d(_WSConv, nn.Conv1d):
    """`WSConv2d` for ``(N, C, L)``."""


class WSConv2d(_WSConv, nn.Conv2d):
    """`torch.nn.Conv2d` whose filters are standardized before use; see `standardize_weight`.

    Takes the arguments of ``torch.nn.Conv2d``, then ``eps`` and ``eps_mode`` by name. The parameter
    ``weight`` stays the free one, so checkpoints keep their keys; the gradient flows through the
    standardization. It is computed once per change of the weight (see `WSConvMixin`), not once per
    call. With N = 0 the output is empty, as torch's.

    Not for a convolution without a norm behind it (predictors): its scale would be lost. A weight
    trained without WS gives other features here; see `wsbcn_d2.checkpoint`.

    Raises:
        ValueError: fewer than two weights per filter, or an unknown ``eps_mode``.
    """


class WSConv3d(_WSConv, nn.Conv3d):
    """`WSConv2d` for ``(N, C, D, H, W)``."""
