"""YOLO's format: a ``data.yaml``, and for each image a text file with a line an object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError
from .labels import IMAGE_SUFFIXES, LabelSet

__all__ = ["find", "read"]

# Labellers write 1.000002 for the border.
_TOLERANCE = 1e-3


def find(path: Path) -> dict[str, Any] | None:
    """Split to what `read` takes, or None where ``path`` is no YOLO dataset.

    Args:
        path: the ``data.yaml``, or the folder that it is in.
    """
    files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
    for file in files:
        if file.suffix in (".yaml", ".yml"):
            content = _load(file)
            if isinstance(content, dict) and ("names" in content or "train" in content):
                return _splits(file, content)
    return None


def _load(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: is no valid yaml: {error}") from error


def _splits(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    names = content.get("names")
    if isinstance(names, dict):
        wanted = list(range(len(names)))
        if sorted(names, key=str) != sorted(wanted, key=str):
            raise UserError(
                f"{file}: the keys of 'names' must be 0 to {len(names) - 1}; they are {list(names)}"
            )
        names = [names[i] for i in wanted]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: 'names' must list the classes, in the order of their numbers")
    if content.get("nc", len(names)) != len(names):
        raise UserError(f"{file}: 'nc' is {content['nc']}, but 'names' has {len(names)} classes")
    if "kpt_shape" in content:
        raise UserError(f"{file}: has 'kpt_shape': keypoints are read from COCO's format only")
    found: dict[str, Any] = {}
    for split in ("train", "val"):
        value = content.get(split)
        if value:
            places = value if isinstance(value, list) else [value]
            paths = [_resolve(file, content, split, str(place)) for place in places]
            found[split] = (file, [str(name) for name in names], paths)
    if "train" not in found:
        raise UserError(f"{file}: has no 'train', the folder of the training images")
    return found


def _resolve(file: Path, content: dict[str, Any], split: str, place: str) -> Path:
    """A folder of images, or a text file that lists them."""
    tried = []
    # Exported files say ../train/images and mean train/images beside them.
    for name in (place, place.removeprefix("../")):
        for root in (file.parent / str(content.get("path") or ""), file.parent):
            tried.append(root / name)
            if tried[-1].exists():
                return tried[-1]
    where = ", ".join(dict.fromkeys(map(str, tried)))
    raise UserError(f"{file}: {split!r} is {place!r}, which is not there; looked for {where}")


def _images(place: Path, labels: LabelSet) -> Iterator[tuple[Path, str]]:
    """Image files, and what names them."""
    if place.is_dir():
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield path, str(path)
        return
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield place.parent / line.strip(), f"{place}:{number}"


def _label_file(image: Path) -> Path:
    """``…/images/…/a.jpg`` has ``…/labels/…/a.txt``; otherwise it lies beside the image."""
    parts = list(image.parent.parts)
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        file = Path(*parts[:at], "labels", *parts[at + 1 :], image.name).with_suffix(".txt")
        if file.parent.is_dir():
            return file
    return image.with_suffix(".txt")


def read(source: tuple[Path, list[str], list[Path]]) -> LabelSet:
    """Read a split; an image without a label file has no objects."""
    file, names, places = source
    labels = LabelSet(file, names)
    without = 0
    for place in places:
        for path, where in _images(place, labels):
            image = labels.add_image(path, where)
            text = _label_file(path)
            if not text.exists():
                without += 1
                continue
            try:
                lines = text.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                labels.fault(text, f"cannot be read: {error}")
                continue
            for number, line in enumerate(lines, start=1):
                if image is not None and line.strip():
                    _read_line(labels, image, line, f"{text}:{number}")
    if without and without == len(labels.images):
        labels.fault(
            file, f"none of its {without} images has a label file; looked for {_label_file(path)}"
        )
    return labels


def _read_line(labels: LabelSet, image: dict[str, Any], line: str, where: str) -> None:
    try:
        number, *values = map(float, line.split())
    except ValueError:
        return labels.fault(where, f"not numbers: {line.strip()[:80]!r}")
    names, count = labels.classes or [], len(values)
    if number not in range(len(names)):
        return labels.fault(
            where,
            f"class {number:g} is not among those of {labels.origin.name}, 0 to {len(names) - 1}",
        )
    if count != 4 and (count < 6 or count % 2):
        return labels.fault(
            where,
            f"{count} numbers follow the class: a box has 4 (centre x and y, width, height), a "
            "polygon x and y of at least three points",
        )
    # Also where a number is NaN.
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):
        worst = max(values, key=lambda value: abs(value - 0.5))
        return labels.fault(where, f"{worst:g} is not between 0 and 1, in shares of the image")
    width, height = image["width"], image["height"]
    name = names[int(number)]
    if count > 4:
        sides = (width, height)
        polygon = [value * sides[i % 2] for i, value in enumerate(values)]
        return labels.add(image, name, where, segmentation=[polygon])
    x, y, w, h = values
    box = (
        (x - w / 2) * width,
        (y - h / 2) * height,
        (x + w / 2) * width,
        (y + h / 2) * height,
    )
    return labels.add(image, name, where, box=box)
