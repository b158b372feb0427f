"""Checkpoints: saving and loading them, published ones too, and how their weights were trained."""

from .catalog import register_catalog
from .checkpointer import WSBCNCheckpointer
from .comparison import compare_with_checkpoint, describe_model
from .convert import Conversion, convert_state, convert_weights
from .entries import CATALOG
from .norm_kinds import describe_norms, infer_norms
from .pretraining import Pretraining
from .reading import CheckpointError
from .sources import SOURCES

__all__ = [
    "CATALOG",
    "SOURCES",
    "CheckpointError",
    "Conversion",
    "Pretraining",
    "WSBCNCheckpointer",
    "compare_with_checkpoint",
    "convert_state",
    "convert_weights",
    "describe_model",
    "describe_norms",
    "infer_norms",
    "register_catalog",
]

register_catalog()
