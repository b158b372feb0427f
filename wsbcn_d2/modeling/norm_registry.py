"""This package's norms as names for detectron2's ``get_norm``."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.layers import batch_norm
from torch import Tensor, nn

from ..norms import (
    BatchChannelNorm2d,
    BatchRenorm2d,
    SparseSwitchNorm2d,
    SwitchNorm2d,
    SyncSwitchNorm2d,
    normalize,
)

__all__ = ["InstanceNorm2d", "build_norm", "known_norms", "register_norms", "unregister_norms"]


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's InstanceNorm2d with an affine pair, for detectors.

    Unlike torch's it takes 1 x 1 maps in training, and empty batches (ROI heads without proposals).
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        def rule(mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            return weight * (var + self.eps).rsqrt(), bias

        self._check_input_dim(input)
        return normalize(input, rule, self.weight, self.bias)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "SN": SwitchNorm2d,
    "SyncSN": SyncSwitchNorm2d,
    "SN_IN_LN": partial(SwitchNorm2d, statistics=("in", "ln")),
    "SSN": SparseSwitchNorm2d,
    "BCN": BatchChannelNorm2d,
    "BatchBCN": partial(BatchChannelNorm2d, statistics="batch"),
    "SyncBCN": partial(BatchChannelNorm2d, statistics="sync"),
    "IN": InstanceNorm2d,
    "BRN": BatchRenorm2d,
}
# The keys of the dictionary inside detectron2's get_norm, which shows them to nobody.
_STOCK = ("BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
_STOCK_ATTRIBUTE = "_wsbcn_d2_stock"


def known_norms() -> tuple[str, ...]:
    """All names that ``get_norm`` takes after `register_norms`, besides "" for no norm."""
    return (*_NORMS, *_STOCK)


def register_norms() -> None:
    """Make this package's norms choices in detectron2, by name, wherever it takes a norm.

    After it ``get_norm`` knows "SN", "SyncSN", "SN_IN_LN" (no batch statistic), "SSN", "BCN"
    (estimates), "BatchBCN", "SyncBCN", "IN" and "BRN" besides the stock names, and lists them all
    when given a name that it does not know. Calling it again changes nothing; `unregister_norms`
    undoes it.
    """
    get_norm = batch_norm.get_norm
    if hasattr(get_norm, _STOCK_ATTRIBUTE):
        return
    stock = types.FunctionType(
        get_norm.__code__, get_norm.__globals__, "get_norm", get_norm.__defaults__
    )
    setattr(get_norm, _STOCK_ATTRIBUTE, stock)
    # A dozen modules of detectron2, and any number of users', hold this function by name, in
    # closures and in configs. Giving the function another body reaches all of them, imported before
    # or after; replacing it in every module would not.
    get_norm.__code__ = _get_norm.__code__


def unregister_norms() -> None:
    """Undo `register_norms`: ``get_norm`` is detectron2's own again."""
    get_norm = batch_norm.get_norm
    stock = getattr(get_norm, _STOCK_ATTRIBUTE, None)
    if stock is not None:
        get_norm.__code__ = stock.__code__
        delattr(get_norm, _STOCK_ATTRIBUTE)


def _get_norm(norm: Any, out_channels: int) -> Any:
    # Runs as detectron2.layers.batch_norm.get_norm, with that module's globals.
    from wsbcn_d2.modeling.norm_registry import build_norm

    return build_norm(norm, out_channels)


def build_norm(norm: Any, out_channels: int) -> nn.Module | None:
    """``get_norm`` with this package's names: a norm of ``out_channels``, or None for "".

    Raises:
        ValueError: an unknown name; the known ones are listed.
    """
    if isinstance(norm, str) and norm in _NORMS:
        return _NORMS[norm](out_channels)
    if isinstance(norm, str) and norm and norm not in _STOCK:
        raise ValueError(
            f"unknown norm {norm!r}; known: {', '.join(sorted(known_norms()))}, '' for none, or a "
            "callable that takes the number of channels"
        )
    stock = getattr(batch_norm.get_norm, _STOCK_ATTRIBUTE, batch_norm.get_norm)
    return stock(norm, out_channels)
