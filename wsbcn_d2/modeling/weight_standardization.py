"""Weight Standardization and Normalization for detectron2's convolutions, new and existing ones."""

from __future__ import annotations

import importlib
import itertools
import logging
from typing import Any, TypeVar

import torch.nn.functional as F
from detectron2 import layers
from detectron2.layers.batch_norm import CycleBatchNormList
from detectron2.layers.batch_norm import LayerNorm as ChannelLayerNorm
from torch import Tensor, nn

from .. import norms
from ..norms.weight_normalization import WN_MODES
from ..norms.weight_standardization import EPS_MODES, check_weight_shape

__all__ = [
    "WNConv2d",
    "WSConv2d",
    "norm_of_convs",
    "plain_conv",
    "standardize_convs",
    "standardized",
]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


class WSConv2d(norms.WSConvMixin, layers.Conv2d):
    """`detectron2.layers.Conv2d` with weight standardization: ``norm`` and ``activation`` too.

    Takes detectron2's arguments, then ``eps`` and ``eps_mode`` as in
    `wsbcn_d2.norms.standardize_weight`. Not for a convolution without a norm.

    Raises:
        ValueError: fewer than two weights per filter, or an unknown ``eps_mode``.
    """

    def __init__(
        self, *args: Any, eps: float = 1e-5, eps_mode: str = "outside", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_weight_shape(self.weight.shape, eps_mode)
        self.eps = eps
        self.eps_mode = eps_mode

    def forward(self, x: Tensor) -> Tensor:
        # The body of detectron2's Conv2d.forward, with the other weight.
        weight = self.standardized_weight()
        x = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


class WNConv2d(norms.WNConvMixin, WSConv2d):
    """`detectron2.layers.Conv2d` with WN or CWN; see `wsbcn_d2.norms.WNConv2d`."""


_STANDARDIZED: dict[type[nn.Module], type[nn.Module]] = {
    layers.Conv2d: WSConv2d,
    nn.Conv1d: norms.WSConv1d,
    nn.Conv2d: norms.WSConv2d,
    nn.Conv3d: norms.WSConv3d,
}
_NORMALIZED: dict[type[nn.Module], type[nn.Module]] = {
    layers.Conv2d: WNConv2d,
    nn.Conv1d: norms.WNConv1d,
    nn.Conv2d: norms.WNConv2d,
    nn.Conv3d: norms.WNConv3d,
}
_PLAIN = {made: plain for kinds in (_STANDARDIZED, _NORMALIZED) for plain, made in kinds.items()}
_NORM_TYPES = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms, SN
    nn.GroupNorm,  # and BCN
    nn.LayerNorm,
    ChannelLayerNorm,
    CycleBatchNormList,
    layers.FrozenBatchNorm2d,
)
_CONV_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def standardize_convs(module: M, eps: float = 1e-5, eps_mode: str = "outside") -> M:
    """Standardize, in place, the weights of every convolution that a norm follows.

    That is a detectron2 ``Conv2d`` with a ``norm``, and a torch convolution whose next sibling (as
    in ``nn.Sequential(conv, norm)`` or torchvision's ``conv1``, ``bn1``) is a norm of its width.
    All others (predictors, RPN, lateral convolutions without a norm) stay as they are, and so do
    convolutions of other classes (deformable ones, for example); the log says how many.

    Parameters, hooks, ``norm``, ``activation`` and state-dict keys are kept. Doing it twice is
    doing it once.

    Args:
        module: the model, or a part of it.
        eps, eps_mode: as in `wsbcn_d2.norms.standardize_weight`; or "wn" or "cwn" for weight
            normalization instead, see `wsbcn_d2.norms.normalize_weight`: it adds a ``weight_g``.

    Returns:
        ``module``, so that the function can stand in a lazy config.

    Raises:
        ValueError: a convolution to be standardized has one weight per filter, or ``eps_mode`` is
            unknown; nothing is converted then.
    """
    if eps_mode not in (*EPS_MODES, *WN_MODES):
        known = ", ".join(map(repr, (*EPS_MODES, *WN_MODES)))
        raise ValueError(f"eps_mode ({eps_mode!r}) must be one of {known}")
    normalizes = eps_mode in WN_MODES
    kinds = _NORMALIZED if normalizes else _STANDARDIZED
    followed = norm_of_convs(module)
    convs: list[tuple[str, Any]] = [
        (name, m) for name, m in module.named_modules() if isinstance(m, _CONV_TYPES)
    ]
    chosen, foreign = [], []
    for name, conv in convs:
        if conv not in followed:
            continue
        own: Any = type(conv)
        kind = kinds.get(_PLAIN.get(own, own))
        if kind is None and not normalizes and issubclass(own, norms.WSConvMixin):
            kind = own
        if kind is not None:
            try:
                check_weight_shape(conv.weight.shape, "outside" if normalizes else eps_mode)
            except ValueError as e:
                raise ValueError(f"cannot standardize convolution {name!r}: {e}") from None
            chosen.append((conv, kind))
        else:
            foreign.append(f"{name} ({type(conv).__name__})")
    for conv, kind in chosen:
        if type(conv) is not kind and type(conv) in _PLAIN:
            plain_conv(conv)
        conv.__class__ = kind
        conv.eps, conv.eps_mode = eps, eps_mode
        if normalizes and "weight_g" not in conv._parameters:
            conv.reset_lengths()
    note = f"; left as they are, of another class: {', '.join(foreign)}" if foreign else ""
    logger.info(
        f"{'Normalizing' if normalizes else 'Standardizing'} the weights of {len(chosen)} of "
        f"{len(convs)} convolutions of "
        f"{type(module).__name__} ({len(convs) - len(followed)} have no norm){note}"
    )
    return module


def plain_conv(conv: Any) -> Any:
    """Make a standardized convolution the plain one of its kind again, in place; returns it.

    Its parameters stay as they are; the lengths of WN go.
    """
    conv.__class__ = _PLAIN[type(conv)]
    for name in ("eps", "eps_mode", "_standardized"):
        conv.__dict__.pop(name, None)
    conv._parameters.pop("weight_g", None)
    return conv


def norm_of_convs(root: nn.Module) -> dict[nn.Module, nn.Module]:
    """The convolutions that a norm follows, and that norm.

    Args:
        root: the model; see `standardize_convs` for what counts as following.
    """
    found: dict[nn.Module, nn.Module] = {}
    for module in root.modules():
        if isinstance(module, layers.Conv2d) and module.norm is not None:
            found[module] = module.norm
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue  # their order is not an order of calls
        for conv, norm in itertools.pairwise(module.children()):
            if (
                isinstance(conv, _CONV_TYPES)
                and getattr(conv, "norm", None) is None
                and isinstance(norm, _NORM_TYPES)
                and _width(norm) in (conv.out_channels, None)
            ):
                found[conv] = norm
    return found


def _width(norm: nn.Module) -> int | None:
    for name in ("num_features", "num_channels"):
        if isinstance(getattr(norm, name, None), int):
            return getattr(norm, name)
    weight = getattr(norm, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) else None


def standardized(
    module_class: str | type[nn.Module],
    *args: Any,
    ws_eps: float = 1e-5,
    ws_eps_mode: str = "outside",
    **kwargs: Any,
) -> nn.Module:
    """``standardize_convs(module_class(*args, **kwargs))``, as a target for lazy configs.

    Keeps a config's paths: ``model._target_`` becomes this function, ``model.module_class`` what it
    was (an import path such as ``"detectron2.modeling.GeneralizedRCNN"``), the rest stays in place.
    """
    if isinstance(module_class, str):
        path, _, name = module_class.rpartition(".")
        module_class = getattr(importlib.import_module(path), name)
    assert not isinstance(module_class, str)
    return standardize_convs(module_class(*args, **kwargs), ws_eps, ws_eps_mode)
