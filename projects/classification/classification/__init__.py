"""Image classification with the detectors' backbones, on the engine of `wsbcn_d2`."""

from .data import cifar, digits, image_folder, tar_shards
from .evaluation import TopKEvaluator
from .mapper import ClassificationMapper
from .model import CifarStem, ImageClassifier, NormWithGroups
from .task import Classification

__all__ = [
    "CifarStem",
    "Classification",
    "ClassificationMapper",
    "ImageClassifier",
    "NormWithGroups",
    "TopKEvaluator",
    "cifar",
    "digits",
    "image_folder",
    "tar_shards",
]
