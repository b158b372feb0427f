"""Boxes in a CSV file: a line an object."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ...errors import UserError
from .labels import LabelSet, split_of

__all__ = ["find", "read"]

# What labelling tools and the object detection libraries that read CSV call their columns.
_COLUMNS = {
    "image": ("image", "filename", "file_name", "path", "image_path", "image_name", "img"),
    "class": ("class", "label", "name", "class_name", "category"),
    "x0": ("xmin", "x_min", "x1", "x0", "left"),
    "y0": ("ymin", "y_min", "y1", "y0", "top"),
    "x1": ("xmax", "x_max", "x2", "right"),
    "y1": ("ymax", "y_max", "y2", "bottom"),
    "x": ("x", "bbox_x"),
    "y": ("y", "bbox_y"),
    "w": ("w", "bbox_width", "width"),
    "h": ("h", "bbox_height", "height"),
}
_EXAMPLE = "image,xmin,ymin,xmax,ymax,class"


def find(path: Path) -> dict[str, Any] | None:
    """Split to what `read` takes, or None where ``path`` is no CSV file and has none in it."""
    if path.is_file():
        return {"": path} if path.suffix == ".csv" else None
    files = sorted(path.glob("*.csv"))
    if len(files) < 2:
        return {"": files[0]} if files else None
    found = {split_of(file.stem): file for file in files}
    if "train" not in found or len(found) < len(files):
        names = ", ".join(file.name for file in files)
        raise UserError(f"{path}: which of {names} is it? Name it: data.train=FILE data.val=FILE")
    return found


def read(file: Path) -> LabelSet:
    """Read boxes in pixels from 0: corners, or corner and size.

    A line without a box names an image without objects.
    """
    labels = LabelSet(file)
    images: dict[str, Any] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            rows = csv.reader(opened, skipinitialspace=True)
            columns = _find_columns(file, next(rows, []))
            for row in rows:
                if row:
                    _read_row(labels, images, columns, row, f"{file}:{rows.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: is no CSV in UTF-8: {error}") from error
    return labels


def _find_columns(file: Path, header: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    columns = {
        key: names.index(name)
        for key, known in _COLUMNS.items()
        for name in known[::-1]
        if name in names
    }
    corners = {"x0", "y0", "x1", "y1"}
    # With corners, width and height are the image's.
    unused = set("xywh") if corners <= set(columns) else corners
    columns = {key: at for key, at in columns.items() if key not in unused}
    lacking = {"image", "class"} - set(columns)
    if lacking or len(columns) < 6:
        raise UserError(
            f"{file}:1: the first line must name the columns, such as {_EXAMPLE}, or "
            f"image,x,y,width,height,class; it is {','.join(header)[:100]!r}"
        )
    return columns


def _read_row(
    labels: LabelSet, images: dict[str, Any], columns: dict[str, int], row: list[str], where: str
) -> None:
    try:
        values = {key: row[at].strip() for key, at in columns.items()}
    except IndexError:
        return labels.fault(where, f"has {len(row)} columns, too few")
    name = values.pop("image")
    if name not in images:
        images[name] = labels.add_image(_image_file(labels.origin, name), where)
    image, label = images[name], values.pop("class")
    if image is None or not any(values.values()):
        return None
    try:
        numbers = {key: float(value) for key, value in values.items()}
    except ValueError:
        return labels.fault(where, f"a coordinate is no number: {', '.join(values.values())}")
    if "w" in numbers:
        x, y = numbers["x"], numbers["y"]
        box = (x, y, x + numbers["w"], y + numbers["h"])
    else:
        box = (numbers["x0"], numbers["y0"], numbers["x1"], numbers["y1"])
    return labels.add(image, label, where, box=box)


def _image_file(file: Path, name: str) -> Path:
    """Beside the CSV file, or in ``images/``."""
    folders = (file.parent, file.parent / "images", file.parent / split_of(file.stem))
    return next((f / name for f in folders if (f / name).is_file()), file.parent / name)
