"""The embedded dataset and its registration in detectron2's catalogs.

Importing this package registers ``digits_train`` and ``digits_val``. Nothing is built before one of
them is loaded or :func:`build_digits` is called.
"""

from __future__ import annotations

from .builtin import register_digits
from .digits import build_digits
from .read_image import register_16_bit_images
from .train_loader import build_train_loader

__all__ = ["build_digits", "build_train_loader", "register_digits"]

register_digits()
register_16_bit_images()
