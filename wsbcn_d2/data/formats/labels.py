"""Images and labels on their way from a labelling tool's files to COCO's format."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import UserError

__all__ = ["IMAGE_SUFFIXES", "LabelSet", "image_size", "split_of"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SHOWN = 10
_ORIENTATION, _SWAPS_SIDES = 0x0112, (5, 6, 7, 8)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as detectron2 reads the image: turned by its EXIF orientation."""
    with Image.open(path) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _SWAPS_SIDES:
            return height, width
        return width, height


def split_of(name: str) -> str:
    """``"train"``, ``"val"`` or ``"test"``, as a file's or folder's name says; otherwise ``""``."""
    name = name.lower()
    return next((split for split in ("train", "val", "test") if split in name), "")


class LabelSet:
    """The images of a dataset or split, their labels, and what is wrong with them.

    Readers collect all faults, so that the user gets them in one message.

    Args:
        origin: what it is read from, for messages.
        classes: names in the order of their numbers; None where the labels alone name them.

    Attributes:
        images: in COCO's format, with the absolute path as ``file_name``.
        annotations: in COCO's format, but with the class' name as ``category_id``; ``source`` is
            the file and the line or number of the label.
        notes: what the user should know of how it was read.
    """

    def __init__(self, origin: Path, classes: Sequence[str] | None = None) -> None:
        self.origin = origin
        self.classes = None if classes is None else list(classes)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._faults: list[str] = []
        self._seen: dict[str, str] = {}

    def fault(self, where: str | Path, what: str) -> None:
        """Note an error; `raise_faults` tells it."""
        self._faults.append(f"{where}: {what}")

    def raise_faults(self) -> None:
        """Raise a `UserError` with the faults noted so far, if there are any."""
        if not self._faults:
            return
        count, shown = len(self._faults), self._faults[:_SHOWN]
        more = [f"and {count - _SHOWN} more"] if count > _SHOWN else []
        noun = "1 fault" if count == 1 else f"{count} faults"
        raise UserError("\n  ".join([f"{self.origin}: {noun} in its labels:", *shown, *more]))

    def add_image(
        self, path: Path, where: str | Path, stated: Sequence[int] | None = None
    ) -> dict[str, Any] | None:
        """Add an image; None where it cannot be used, which is a fault then.

        Args:
            path: of the image file.
            where: the labels that name it.
            stated: width and height that the labels give; 0 for unknown.
        """
        name = os.path.abspath(path)
        if name in self._seen:
            self.fault(where, f"labels {name}, which {self._seen[name]} labels already")
            return None
        self._seen[name] = str(where)
        try:
            width, height = image_size(path)
        except FileNotFoundError:
            self.fault(where, f"its image is not there: {name}")
            return None
        except Exception as error:  # whatever a decoder makes of it
            self.fault(where, f"its image {name} cannot be read: {type(error).__name__}: {error}")
            return None
        if stated and all(stated) and tuple(stated) != (width, height):
            self.fault(
                where,
                f"says that {name} is {stated[0]}x{stated[1]} (width x height), and it is "
                f"{width}x{height}",
            )
            return None
        image = {"id": len(self.images) + 1, "file_name": name, "width": width, "height": height}
        self.images.append(image)
        return image

    def add(
        self,
        image: dict[str, Any],
        name: str,
        where: str,
        *,
        box: Sequence[float] | None = None,
        segmentation: Any = None,
    ) -> None:
        """Add an object.

        Args:
            image: from `add_image`.
            name: of its class.
            where: file, and line or number.
            box: ``(x0, y0, x1, y1)`` in pixels; None where polygons give it.
            segmentation: polygons ``[[x, y, …], …]`` in pixels, or run lengths; None for no mask.
        """
        if box is None:
            xs = [x for polygon in segmentation for x in polygon[::2]]
            ys = [y for polygon in segmentation for y in polygon[1::2]]
            box = (min(xs), min(ys), max(xs), max(ys))
        if not all(map(math.isfinite, box)):
            return self.fault(where, f"a coordinate is not finite: {list(box)}")
        x0, y0, x1, y1 = box
        if x1 <= x0 or y1 <= y0:
            return self.fault(where, f"the box is empty: x {x0:g} to {x1:g}, y {y0:g} to {y1:g}")
        if self.classes is None and not name:
            return self.fault(where, "the object has no class name")
        annotation = {
            "id": len(self.annotations) + 1,
            "image_id": image["id"],
            "category_id": name,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0) if segmentation is None else _area(segmentation, image),
            "iscrowd": 0,
            "source": where,
        }
        if segmentation is not None:
            annotation["segmentation"] = segmentation
        self.annotations.append(annotation)
        return None

    def class_names(self) -> list[str]:
        """Those declared, or those of the labels in the order of the alphabet."""
        if self.classes is not None:
            return self.classes
        return sorted({annotation["category_id"] for annotation in self.annotations})

    def to_coco(self, classes: Sequence[str]) -> dict[str, Any]:
        """The content of a COCO file, with the categories 1 to K."""
        ids = {name: i for i, name in enumerate(classes, start=1)}
        return {
            "images": self.images,
            "annotations": [{**a, "category_id": ids[a["category_id"]]} for a in self.annotations],
            "categories": [{"id": i, "name": name} for name, i in ids.items()],
        }


def _area(segmentation: Any, image: dict[str, Any]) -> float:
    from pycocotools import mask as mask_api

    if isinstance(segmentation, list):
        runs = mask_api.frPyObjects(segmentation, image["height"], image["width"])
        segmentation = mask_api.merge(runs)
    return float(mask_api.area(segmentation))


def hold_out(content: dict[str, Any], share: float, seed: int) -> tuple[dict, dict]:
    """Split the content of a COCO file by image into training and validation data.

    Which images are held out follows from the seed and their file names: new images do not move the
    others from one side to the other, but at the border.

    Args:
        content: with ``images``, ``annotations``, ``categories``.
        share: of the images to hold out, at least one of them, and one to train on.
        seed: for another choice.
    """

    def key(image: Any) -> str:
        name = os.path.basename(str(image["file_name"])) if "file_name" in image else str(image)
        return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()

    images = sorted(content["images"], key=key)
    count = min(max(1, round(share * len(images))), len(images) - 1)
    held = {image.get("id") for image in images[:count]}
    # What has no image stays with the training data, where the check finds it.
    parts = []
    for wanted in (False, True):
        parts.append(
            {
                **content,
                "images": [i for i in content["images"] if (i.get("id") in held) is wanted],
                "annotations": [
                    a
                    for a in content.get("annotations", [])
                    if (isinstance(a, dict) and a.get("image_id") in held) is wanted
                ],
            }
        )
    return parts[0], parts[1]
