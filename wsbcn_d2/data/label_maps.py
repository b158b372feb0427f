"""Reading semantic label maps for detectron2's ``SemSegEvaluator``."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

__all__ = ["read_label_map"]


def read_label_map(filename: str, copy: bool = True, dtype: Any = None) -> np.ndarray:
    """Read a label map, shape (H, W), from an image file.

    For ``SemSegEvaluator(…, sem_seg_loading_fn=read_label_map)``. detectron2's own
    ``load_image_into_numpy_array`` forbids numpy to copy, which is an error since numpy 2. To be
    deleted when detectron2 supports numpy 2.

    Args:
        filename: path that detectron2's ``PathManager`` reads.
        copy: ignored; the array is always a copy.
        dtype: dtype of the array; None for that of the file.
    """
    with PathManager.open(filename, "rb") as file:
        return np.array(Image.open(file), dtype=dtype)
