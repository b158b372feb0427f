"""Normalization for micro-batch training: WS convolutions, BCN, SN, SyncSN and SSN. torch only."""

from .affine import normalize
from .batch_average import update_batch_average
from .batch_channel_norm import BatchChannelNorm1d, BatchChannelNorm2d, BatchChannelNorm3d
from .sparse_switchable_norm import SparseSwitchNorm1d, SparseSwitchNorm2d, SparseSwitchNorm3d
from .sparsemax import sparsemax, sparsestmax
from .switchable_norm import (
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SyncSwitchNorm1d,
    SyncSwitchNorm2d,
    SyncSwitchNorm3d,
)
from .turns import prepare_sync_norms
from .weight_standardization import WSConv1d, WSConv2d, WSConv3d, WSConvMixin, standardize_weight

__all__ = [
    "BatchChannelNorm1d",
    "BatchChannelNorm2d",
    "BatchChannelNorm3d",
    "SparseSwitchNorm1d",
    "SparseSwitchNorm2d",
    "SparseSwitchNorm3d",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "SyncSwitchNorm1d",
    "SyncSwitchNorm2d",
    "SyncSwitchNorm3d",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSConvMixin",
    "normalize",
    "prepare_sync_norms",
    "sparsemax",
    "sparsestmax",
    "standardize_weight",
    "update_batch_average",
]
