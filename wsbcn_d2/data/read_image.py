"""16-bit images, scaled to 8 bits where detectron2 reads images.

detectron2 converts every image to RGB with Pillow, which clips: a 16-bit image, whose values are
mostly above 255, becomes white.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

__all__ = ["is_16_bit", "register_16_bit_images", "to_8_bit"]

_FULL_RANGE = 65535


def is_16_bit(image: Image.Image) -> bool:
    """Whether the image has one channel of 16 bits (``"I"`` is what some decoders make of it)."""
    return image.mode == "I" or image.mode.startswith("I;16")


def to_8_bit(image: Image.Image) -> Image.Image:
    """Scale a 16-bit image by the whole range of its type: ``round(value * 255 / 65535)``.

    The same for every image, whatever values it holds, so that equal values stay equal. Images of
    10 or 12 bits in files of 16 become dark; convert those before.

    Args:
        image: of mode ``"I"`` or ``"I;16"`` in any byte order; values of more than 16 bits are
            clipped.

    Returns:
        an image of mode ``"L"``.
    """
    values = np.asarray(image).astype(np.int64).clip(0, _FULL_RANGE)
    return Image.fromarray(((values * 255 + _FULL_RANGE // 2) // _FULL_RANGE).astype(np.uint8))


def _convert(image: Image.Image, format: str | None) -> np.ndarray:
    if format is not None and is_16_bit(image) and not _is_label_map(image, format):
        image = to_8_bit(image)
    return _detectron2_convert(image, format)


def _is_label_map(image: Image.Image, format: str) -> bool:
    # detectron2 reads semantic maps as "L" too: their values are class numbers, 255 at most.
    return format == "L" and int(np.asarray(image).max()) <= 255


_detectron2_convert: Any = detection_utils.convert_PIL_to_numpy


def register_16_bit_images() -> None:
    """Have detectron2's ``read_image``, hence every mapper, read 16-bit images by `to_8_bit`.

    All of detectron2's readers go through ``convert_PIL_to_numpy``. 8-bit images are read as
    before. Calling it again changes nothing.
    """
    detection_utils.convert_PIL_to_numpy = _convert
