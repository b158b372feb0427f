"""From a record of `data` to an input of `ImageClassifier`."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image
from torchvision.transforms.v2 import functional as F

__all__ = ["ClassificationMapper"]


class ClassificationMapper:
    """Reads the image, and augments it with transforms of ``torchvision.transforms.v2``.

    Args:
        transforms: from a PIL image to one; random ones are seeded by the training loader.
    """

    def __init__(self, transforms: Callable[[Image.Image], Image.Image]) -> None:
        self.transforms = transforms

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the record with its ``image``, uint8 of shape (3, H, W)."""
        image = F.pil_to_tensor(self.transforms(_read_image(record)))
        kept = {key: value for key, value in record.items() if key != "pixels"}
        return {**kept, "image": image}


def _read_image(record: dict[str, Any]) -> Image.Image:
    if "pixels" in record:
        return Image.fromarray(record["pixels"])
    with open(record["file_name"], "rb") as file:
        if "offset" in record:
            file.seek(record["offset"])
        content = io.BytesIO(file.read(record.get("size", -1)))
    with Image.open(content) as image:
        return image.convert("RGB")
