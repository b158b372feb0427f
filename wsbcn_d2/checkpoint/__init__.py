"""Checkpoints: saving and loading them, and what their weights were trained with."""

from .checkpointer import CheckpointError, WSBCNCheckpointer
from .norm_kinds import compare_norms, describe_norms, infer_norms

__all__ = ["CheckpointError", "WSBCNCheckpointer", "compare_norms", "describe_norms", "infer_norms"]
