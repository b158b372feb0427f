"""Weight Standardization for detectron2's convolutions, new ones and those of an existing model."""

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
from ..norms.weight_standardization import check_weight_shape

__all__ = ["WSConv2d", "norm_of_convs", "plain_conv", "standardize_convs", "standardized"]

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


_STANDARDIZED: dict[type[nn.Module], type[nn.Module]] = {
    layers.Conv2d: WSConv2d,
    nn.Conv1d: norms.WSConv1d,
    nn.Conv2d: norms.WSConv2d,
    nn.Conv3d: norms.WSConv3d,
}
_PLAIN = {standardized: plain for plain, standardized in _STANDARDIZED.items()}
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
        eps, eps_mode: as in `wsbcn_d2.norms.standardize_weight`.

    Returns:
        ``module``, so that the function can stand in a lazy config.

    Raises:
        ValueError: a convolution to be standardized has one weight per filter, or ``eps_mode`` is
            unknown; nothing is converted then.
    """
    followed = norm_of_convs(module)
    convs: list[tuple[str, Any]] = [
        (name, m) for name, m in module.named_modules() if isinstance(m, _CONV_TYPES)
    ]
    chosen, foreign = [], []
    for name, conv in convs:
        if conv not in followed:
            continue
        if isinstance(conv, norms.WSConvMixin) or type(conv) in _STANDARDIZED:
            try:
                check_weight_shape(conv.weight.shape, eps_mode)
            except ValueError as e:
                raise ValueError(f"cannot standardize convolution {name!r}: {e}") from None
            chosen.append(conv)
        else:
            foreign.append(f"{name} ({type(conv).__name__})")
    for conv in chosen:
        conv.__class__ = _STANDARDIZED.get(type(conv), type(conv))
        conv.eps, conv.eps_mode = eps, eps_mode
    note = f"; left as they are, of another class: {', '.join(foreign)}" if foreign else ""
    logger.info(
        f"Standardizing the weights of {len(chosen)} of {len(convs)} convolutions of "
        f"{type(module).__name__} ({len(convs) - len(followed)} have no norm){note}"
    )
    return module


def plain_conv(conv: Any) -> Any:
    """Make a standardized convolution the plain one of its kind again, in place; returns it.

    Its parameters stay as they are.
    """
    conv.__class__ = _PLAIN[type(conv)]
    for name in ("eps", "eps_mode", "_standardized"):
        conv.__dict__.pop(name, None)
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
