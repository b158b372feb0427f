"""Pascal VOC's format: an XML file an image."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from .labels import IMAGE_SUFFIXES, LabelSet, split_of

__all__ = ["find", "read"]


def find(path: Path) -> dict[str, Any] | None:
    """Split to what `read` takes, or None where ``path`` is no folder with such files.

    Args:
        path: with XML files in it or in ``Annotations/``; with ``ImageSets/Main/train.txt`` and
            ``val.txt``, as in VOC's own folders, the split is theirs.
    """
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    files = sorted(folder.glob("*.xml")) if folder.is_dir() else []
    if not files:
        return None
    lists = {
        split_of(f.stem): f
        for f in sorted((path / "ImageSets" / "Main").glob("*.txt"))
        if f.stem in ("train", "val")
    }
    if "train" not in lists:
        return {"": (path, files, None)}
    return {split: (path, files, file) for split, file in lists.items()}


def read(source: tuple[Path, list[Path], Path | None]) -> LabelSet:
    """Read a split.

    Corners are pixels counted from 1, as detectron2 reads VOC, unless a corner of 0 or of a broken
    number says that the tool counted from 0.
    """
    path, files, image_set = source
    labels = LabelSet(path)
    if image_set is not None:
        by_name = {file.stem: file for file in files}
        files = []
        for number, line in enumerate(image_set.read_text(encoding="utf-8").splitlines(), start=1):
            name = line.split()[0] if line.strip() else ""
            if name in by_name:
                files.append(by_name[name])
            elif name:
                labels.fault(f"{image_set}:{number}", f"there are no labels {name}.xml")
    objects = []
    for file in files:
        objects += _read_file(labels, path, file)
    corners = [corner for *_, (x0, y0, _, _) in objects for corner in (x0, y0)]
    from_1 = all(corner >= 1 and corner == int(corner) for corner in corners)
    labels.notes.append(
        "corners are counted from 1, as VOC does" if from_1 else "corners are counted from 0"
    )
    for image, name, where, (x0, y0, x1, y1) in objects:
        labels.add(image, name, where, box=(x0 - from_1, y0 - from_1, x1, y1))
    return labels


def _read_file(labels: LabelSet, path: Path, file: Path) -> list[tuple[Any, str, str, list[float]]]:
    try:
        root = ET.parse(file).getroot()
    except (ET.ParseError, UnicodeDecodeError, OSError) as error:
        # An ElementTree's message ends with line and column.
        labels.fault(file, f"is no valid XML: {error}")
        return []
    if root.tag != "annotation":
        labels.fault(file, f"the root is <{root.tag}>, not VOC's <annotation>")
        return []
    name = (root.findtext("filename") or "").strip()
    size = [_number(root.findtext(f"size/{side}")) for side in ("width", "height")]
    stated = [0 if value is None else int(value) for value in size]
    image = labels.add_image(_image_file(path, file, name), file, stated)
    if image is None:
        return []
    found = []
    for number, element in enumerate(root.iter("object"), start=1):
        label = (element.findtext("name") or "").strip()
        where = f"{file}, object {number}" + (f" ({label})" if label else "")
        corners = []
        for key in ("xmin", "ymin", "xmax", "ymax"):
            text = element.findtext(f"bndbox/{key}")
            value = _number(text)
            if value is None:
                what = (
                    f"<{key}> is {text!r}, no number" if text else f"has no <bndbox> with <{key}>"
                )
                labels.fault(where, what)
                break
            corners.append(value)
        else:
            found.append((image, label, where, corners))
    return found


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _image_file(path: Path, file: Path, name: str) -> Path:
    """The image that an XML file names, or one of the XML file's own name."""
    folders = (path / "JPEGImages", path / "images", file.parent, path)
    names = [name] if name else []
    names += [file.stem + suffix for suffix in IMAGE_SUFFIXES]
    for wanted in names:
        for folder in folders:
            if (folder / wanted).is_file():
                return folder / wanted
    return next((f for f in folders if f.is_dir()), path) / (name or f"{file.stem}.jpg")
