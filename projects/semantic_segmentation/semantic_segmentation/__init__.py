"""Semantic segmentation on dilated ResNets, on the engine of `wsbcn_d2`."""

from .data import register_datasets
from .heads import DeepLabV3Head, FCNHead, PSPHead
from .mapper import RandomScale, SegmentationMapper
from .model import Segmentor
from .task import SemanticSegmentation

__all__ = [
    "DeepLabV3Head",
    "FCNHead",
    "PSPHead",
    "RandomScale",
    "SegmentationMapper",
    "Segmentor",
    "SemanticSegmentation",
    "register_datasets",
]

register_datasets()
