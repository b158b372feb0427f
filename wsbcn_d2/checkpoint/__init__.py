"""Checkpoints: saving and loading them, published ones too, and how their weights were trained."""

from .catalog import CATALOG, register_catalog
from .checkpointer import CheckpointError, WSBCNCheckpointer
from .convert import Conversion, convert_state, convert_weights
from .norm_kinds import compare_norms, describe_norms, infer_norms
from .pretraining import Pretraining
from .pretraining_check import compare_pretraining
from .sources import SOURCES

__all__ = [
    "CATALOG",
    "SOURCES",
    "CheckpointError",
    "Conversion",
    "Pretraining",
    "WSBCNCheckpointer",
    "compare_norms",
    "compare_pretraining",
    "convert_state",
    "convert_weights",
    "describe_norms",
    "infer_norms",
    "register_catalog",
]

register_catalog()
