"""Reading semantic label maps for detectron2's ``SemSegEvaluator``."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

__all__ = ["read_label_map"]


def read_label_map(filename: str, copy: bool = True, dtype: Any = None) -> np.ndarray:
    """The label map (H, W) in an image file, an array of its own.

    For ``SemSegEvaluator(…, sem_seg_loading_fn=read_label_map)``, in the place of detectron2's
    ``load_image_into_numpy_array``, which asks numpy never to copy; since numpy 2 that is an error.
    To be deleted when detectron2's takes numpy 2.

    Args:
        filename: a path that detectron2's ``PathManager`` reads.
        copy: ignored: it is always a copy.
        dtype: of the array; None for the file's.
    """
    with PathManager.open(filename, "rb") as file:
        return np.array(Image.open(file), dtype=dtype)
