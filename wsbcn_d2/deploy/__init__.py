"""Trained detectors in use: folded into plain layers, exported, on images of any size."""

from .detector import Detector, load_detector
from .export import FORMATS, export_detector
from .fold import Folding, fold_model
from .folded_config import save_folded

__all__ = [
    "FORMATS",
    "Detector",
    "Folding",
    "export_detector",
    "fold_model",
    "load_detector",
    "save_folded",
]
