"""The table of norms, and its names as choices of detectron2's ``get_norm``."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, batch_norm
from detectron2.layers.batch_norm import LayerNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..norms import (
    BatchChannelNorm,
    BatchChannelNorm2d,
    BatchRenorm2d,
    SparseSwitchNorm,
    SparseSwitchNorm2d,
    SwitchNorm,
    SwitchNorm2d,
    SyncBatchNorm2d,
    SyncSwitchNorm,
    SyncSwitchNorm2d,
    normalize,
)

__all__ = [
    "NORMS",
    "GroupNorm1",
    "InstanceNorm2d",
    "Norm",
    "build_norm",
    "known_norms",
    "norm_name",
    "norm_with",
    "register_norms",
    "unregister_norms",
]


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


class GroupNorm1(nn.GroupNorm):
    """GroupNorm with one group: Layer Normalization of each sample's ``(C, H, W)``.

    This is the LN that BN, IN, GN and SN are compared with in the papers (arXiv:1607.06450 for its
    statistics, arXiv:1803.08494 for the affine pair of each channel). detectron2's "LN" takes those
    of the channels at each position.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(1, num_features)


class Norm(NamedTuple):
    """A row of the table of norms: all that the project knows of one by its name.

    Attributes:
        build: makes one of so many channels; None where detectron2's ``get_norm`` does.
        classes: a layer of one of these is this norm, if it also has the values that ``build`` as a
            ``partial`` sets; empty for another name of a norm in the table.
        family: norms of one family share their parameters and, in evaluation, their arithmetic.
        statistics: what they are taken over in training: a ``"sample"``, the batch of a
            ``"process"``, that of all ``"ranks"``, or past batches (``"estimates"``).
    """

    build: Callable[[int], nn.Module] | None
    classes: tuple[type[nn.Module], ...]
    family: str
    statistics: str

    def settings(self) -> dict[str, Any]:
        """What tells this norm from others of its classes, by attribute."""
        return self.build.keywords if isinstance(self.build, partial) else {}


_SN_IN_LN = partial(SwitchNorm2d, statistics=("in", "ln"))
_BATCH_BCN = partial(BatchChannelNorm2d, statistics="batch")
_SYNC_BCN = partial(BatchChannelNorm2d, statistics="sync")

NORMS: dict[str, Norm] = {
    "SN": Norm(SwitchNorm2d, (SwitchNorm,), "SN", "process"),
    "SyncSN": Norm(SyncSwitchNorm2d, (SyncSwitchNorm,), "SN", "ranks"),
    "SN_IN_LN": Norm(_SN_IN_LN, (SwitchNorm,), "SN_IN_LN", "sample"),
    "SSN": Norm(SparseSwitchNorm2d, (SparseSwitchNorm,), "SSN", "process"),
    "BCN": Norm(BatchChannelNorm2d, (BatchChannelNorm,), "BCN", "estimates"),
    "BatchBCN": Norm(_BATCH_BCN, (BatchChannelNorm,), "BCN", "process"),
    "SyncBCN": Norm(_SYNC_BCN, (BatchChannelNorm,), "BCN", "ranks"),
    "IN": Norm(InstanceNorm2d, (_InstanceNorm,), "IN", "sample"),
    "LN_CHW": Norm(GroupNorm1, (GroupNorm1,), "LN_CHW", "sample"),
    "BRN": Norm(BatchRenorm2d, (BatchRenorm2d,), "BN", "estimates"),
    "exactSyncBN": Norm(SyncBatchNorm2d, (SyncBatchNorm2d,), "BN", "ranks"),
    # The keys of the dictionary inside detectron2's get_norm, which shows them to nobody.
    "BN": Norm(None, (_BatchNorm,), "BN", "process"),
    "SyncBN": Norm(None, (nn.SyncBatchNorm, NaiveSyncBatchNorm), "BN", "ranks"),
    "FrozenBN": Norm(None, (FrozenBatchNorm2d,), "BN", "estimates"),
    "GN": Norm(None, (nn.GroupNorm,), "GN", "sample"),
    "nnSyncBN": Norm(None, (), "BN", "ranks"),
    "naiveSyncBN": Norm(None, (), "BN", "ranks"),
    "naiveSyncBN_N": Norm(None, (), "BN", "ranks"),
    "LN": Norm(None, (nn.LayerNorm, LayerNorm), "LN", "sample"),
}
_STOCK_ATTRIBUTE = "_wsbcn_d2_stock"


def known_norms() -> tuple[str, ...]:
    """All names that ``get_norm`` takes after `register_norms`, besides "" for no norm."""
    return tuple(NORMS)


def norm_name(module: nn.Module) -> str | None:
    """The name of a norm layer in `NORMS`; None for a module that is no norm."""
    # The most special class decides: SN derives from InstanceNorm, BCN from GroupNorm.
    for cls in type(module).__mro__:
        names = [name for name, norm in NORMS.items() if cls in norm.classes]
        for name in sorted(names, key=lambda name: -len(NORMS[name].settings())):
            wanted = NORMS[name].settings().items()
            if all(getattr(module, key) == value for key, value in wanted):
                return name
    return None


def norm_with(name: str, **options: Any) -> Callable[[int], nn.Module]:
    """A norm of this package with other arguments than its name stands for.

    In a lazy config ``L(norm_with)(name="SN", momentum=0.003)`` is a choice wherever a name is.

    Args:
        name: one of this package's names, such as "SN" or "BCN".
        options: of the norm's class.

    Raises:
        ValueError: ``name`` is not one of them.
    """
    known = {each: norm.build for each, norm in NORMS.items() if norm.build is not None}
    if name not in known:
        raise ValueError(f"norm_with: unknown norm {name!r}; known: {', '.join(sorted(known))}")
    return partial(known[name], **options)


def register_norms() -> None:
    """Make this package's norms choices in detectron2, by name, wherever it takes a norm.

    After it ``get_norm`` knows "SN", "SyncSN", "SN_IN_LN" (no batch statistic), "SSN", "BCN"
    (estimates), "BatchBCN", "SyncBCN", "IN", "LN_CHW", "BRN" and "exactSyncBN" besides the stock
    names, and lists them all when given a name that it does not know. Calling it again changes
    nothing; `unregister_norms` undoes it.
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
    """``get_norm`` with this package's names.

    Args:
        norm: a name, or a callable that takes the number of channels; "" for none.
        out_channels: of the norm.

    Raises:
        ValueError: an unknown name; the known ones are listed.
    """
    if isinstance(norm, str) and norm:
        if norm not in NORMS:
            raise ValueError(
                f"unknown norm {norm!r}; known: {', '.join(sorted(NORMS))}, '' for none, or a "
                "callable that takes the number of channels"
            )
        build = NORMS[norm].build
        if build is not None:
            return build(out_channels)
    stock = getattr(batch_norm.get_norm, _STOCK_ATTRIBUTE, batch_norm.get_norm)
    return stock(norm, out_channels)
