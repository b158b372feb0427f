"""Normalization for micro-batch training: WS, BCN, SN, SyncSN, SSN, BRN, WN and CWN. torch only."""

from .batch_channel_norm import (
    BatchChannelNorm,
    BatchChannelNorm1d,
    BatchChannelNorm2d,
    BatchChannelNorm3d,
)
from .batch_renorm import BatchRenorm2d
from .normalize import normalize
from .running_stats import update_batch_average
from .sparse_switchable_norm import (
    SparseSwitchNorm,
    SparseSwitchNorm1d,
    SparseSwitchNorm2d,
    SparseSwitchNorm3d,
)
from .sparsemax import sparsemax, sparsestmax
from .switchable_norm import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from .sync import prepare_sync_norms
from .sync_batch_norm import SyncBatchNorm2d
from .sync_switchable_norm import (
    SyncSwitchNorm,
    SyncSwitchNorm1d,
    SyncSwitchNorm2d,
    SyncSwitchNorm3d,
)
from .weight_normalization import WNConv1d, WNConv2d, WNConv3d, WNConvMixin, normalize_weight
from .weight_standardization import WSConv1d, WSConv2d, WSConv3d, WSConvMixin, standardize_weight

__all__ = [
    "BatchChannelNorm",
    "BatchChannelNorm1d",
    "BatchChannelNorm2d",
    "BatchChannelNorm3d",
    "BatchRenorm2d",
    "SparseSwitchNorm",
    "SparseSwitchNorm1d",
    "SparseSwitchNorm2d",
    "SparseSwitchNorm3d",
    "SwitchNorm",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "SyncBatchNorm2d",
    "SyncSwitchNorm",
    "SyncSwitchNorm1d",
    "SyncSwitchNorm2d",
    "SyncSwitchNorm3d",
    "WNConv1d",
    "WNConv2d",
    "WNConv3d",
    "WNConvMixin",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSConvMixin",
    "normalize",
    "normalize_weight",
    "prepare_sync_norms",
    "sparsemax",
    "sparsestmax",
    "standardize_weight",
    "update_batch_average",
]
