"""Every norm of the package, by a name for test ids, as a function of the channel count."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from wsbcn_d2.norms import (
    BatchChannelNorm2d,
    BatchRenorm2d,
    SparseSwitchNorm2d,
    SwitchNorm2d,
    SyncBatchNorm2d,
    SyncSwitchNorm2d,
)


def _groups(channels: int) -> int:
    return channels // 2 if channels % 2 == 0 else 1


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "sn": SwitchNorm2d,
    "sn_grouped": lambda c, **kw: SwitchNorm2d(c, num_groups=_groups(c), **kw),
    "sn_in_ln": lambda c, **kw: SwitchNorm2d(c, statistics=("in", "ln"), **kw),
    "sn_bn": lambda c, **kw: SwitchNorm2d(c, statistics=("bn",), **kw),
    "sn_unbiased": lambda c, **kw: SwitchNorm2d(c, unbiased=True, **kw),
    "sync_sn": SyncSwitchNorm2d,
    "ssn": lambda c, **kw: SparseSwitchNorm2d(c, radius=0.3, **kw),
    "ssn_hard": lambda c, **kw: SparseSwitchNorm2d(c, radius=0.8165, **kw),
    "bcn": lambda c, **kw: BatchChannelNorm2d(c, num_groups=_groups(c), **kw),
    "bcn_batch": lambda c, **kw: BatchChannelNorm2d(c, 1, statistics="batch", **kw),
    "brn": BatchRenorm2d,
    "sync_bn": SyncBatchNorm2d,
    "bcn_sync": lambda c, **kw: BatchChannelNorm2d(c, c, statistics="sync", **kw),
}
