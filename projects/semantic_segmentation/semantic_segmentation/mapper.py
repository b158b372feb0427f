"""From a record with an image and a label map to an input of `Segmentor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image

from wsbcn_d2.data.label_maps import read_label_map

__all__ = ["RandomScale", "SegmentationMapper"]


class RandomScale(T.Augmentation):
    """Resize by a factor whose logarithm is uniform.

    Args:
        low: the smallest factor.
        high: the largest factor.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def get_transform(self, image: np.ndarray) -> T.Transform:
        factor = self.low * (self.high / self.low) ** np.random.uniform()
        height, width = image.shape[:2]
        return T.ResizeTransform(height, width, round(height * factor), round(width * factor))


class SegmentationMapper:
    """Reads an image and its label map, and augments both alike.

    Args:
        augmentations: detectron2's; of the image only, where it is for evaluation.
        is_train: whether label maps are read.
        num_classes: labels go from 0 to ``num_classes - 1``.
        ignore_label: the label of pixels that do not count.
    """

    def __init__(
        self,
        augmentations: Sequence[T.Augmentation],
        *,
        is_train: bool,
        num_classes: int,
        ignore_label: int = 255,
    ) -> None:
        self.augmentations = T.AugmentationList(augmentations)
        self.is_train = is_train
        self.num_classes, self.ignore_label = num_classes, ignore_label

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the record with ``image``, uint8 (3, H, W), and for training ``sem_seg`` (H, W).

        Raises:
            ValueError: the label map has another size, or a label that is no class.
        """
        record = dict(record)
        image = read_image(record["file_name"], "RGB")
        labels = None
        if self.is_train:
            labels = read_label_map(record["sem_seg_file_name"])
            self._check(labels, image.shape[:2], record["sem_seg_file_name"])
        augmented = T.AugInput(image, sem_seg=labels)
        self.augmentations(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        record["image"] = torch.from_numpy(pixels)
        if augmented.sem_seg is not None:
            record["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        return record

    def _check(self, labels: np.ndarray, size: tuple[int, ...], file: str) -> None:
        if labels.shape != size:
            raise ValueError(f"label map {file} has the size {labels.shape}, its image {size}")
        valid = (labels >= 0) & (labels < self.num_classes) | (labels == self.ignore_label)
        if not valid.all():
            raise ValueError(
                f"label map {file} has the label {labels[~valid][0]}, but labels go from 0 to "
                f"{self.num_classes - 1}, and {self.ignore_label} for pixels that do not count"
            )
