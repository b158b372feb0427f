"""LabelMe's format: a JSON file an image."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from .coco import holds
from .labels import LabelSet

__all__ = ["find", "read"]

_CIRCLE_POINTS = 32


def find(path: Path) -> dict[str, Any] | None:
    """Split to what `read` takes, or None where ``path`` is no folder with such files."""
    if not path.is_dir():
        return None
    files = [file for file in sorted(path.rglob("*.json")) if holds(file, "shapes")]
    return {"": (path, files)} if files else None


def read(source: tuple[Path, list[Path]]) -> LabelSet:
    """Read polygons, rectangles, circles and masks; what shares a ``group_id`` is one object."""
    path, files = source
    labels = LabelSet(path)
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            labels.fault(file, f"is no valid JSON: {error}")
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            labels.fault(file, "'shapes' must be a list")
            continue
        # Written on Windows, it has backslashes.
        name = PureWindowsPath(str(content.get("imagePath") or f"{file.stem}.jpg")).as_posix()
        stated = [content.get("imageWidth") or 0, content.get("imageHeight") or 0]
        image = labels.add_image(file.parent / name, file, stated)
        if image is not None:
            _read_shapes(labels, image, content["shapes"], file)
    return labels


def _read_shapes(labels: LabelSet, image: dict[str, Any], shapes: list[Any], file: Path) -> None:
    groups: dict[Any, tuple[str, str, list[list[float]]]] = {}
    for number, shape in enumerate(shapes, start=1):
        where = f"{file}, shape {number}"
        try:
            name, kind = str(shape["label"]), shape.get("shape_type", "polygon")
            points = [(float(x), float(y)) for x, y in shape["points"]]
        except (KeyError, TypeError, ValueError, AttributeError):
            labels.fault(where, "must have a 'label', and 'points' [[x, y], …]")
            continue
        where += f" ({name})"
        needed = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}.get(kind)
        if needed is None:
            labels.fault(
                where, f"is a {kind}: only polygon, rectangle, circle and mask have an area"
            )
        elif len(points) < needed:
            labels.fault(where, f"a {kind} has at least {needed} points, and this {len(points)}")
        elif kind == "rectangle":
            labels.add(image, name, where, box=_corners(points))
        elif kind == "mask":
            _add_mask(labels, image, name, where, points, shape)
        else:
            if kind == "circle":
                points = _circle(*points[:2])
            group = shape.get("group_id")
            key = (name, number if group is None else f"group {group}")
            polygon = [coordinate for point in points for coordinate in point]
            groups.setdefault(key, (name, where, []))[2].append(polygon)
    for name, where, polygons in groups.values():
        labels.add(image, name, where, segmentation=polygons)


def _corners(points: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _circle(centre: tuple[float, float], edge: tuple[float, float]) -> list[tuple[float, float]]:
    radius = math.dist(centre, edge)
    angles = [2 * math.pi * i / _CIRCLE_POINTS for i in range(_CIRCLE_POINTS)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _add_mask(
    labels: LabelSet,
    image: dict[str, Any],
    name: str,
    where: str,
    points: list[tuple[float, float]],
    shape: dict[str, Any],
) -> None:
    """A bitmap (PNG in base64) inside the box of its two points."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as png:
            bitmap = np.asarray(png.convert("L")) > 0
    except Exception as error:  # whatever a decoder makes of it
        return labels.fault(where, f"its 'mask' is no image in base64: {error}")
    x0, y0 = (round(value) for value in _corners(points)[:2])
    full = np.zeros((image["height"], image["width"]), dtype=np.uint8, order="F")
    part = full[y0 : y0 + bitmap.shape[0], x0 : x0 + bitmap.shape[1]]
    if min(x0, y0) < 0 or part.shape != bitmap.shape or not bitmap.any():
        return labels.fault(where, "its mask is empty, or reaches beyond the image")
    part[:] = bitmap
    runs = mask_api.encode(full)
    x, y, w, h = mask_api.toBbox(runs).tolist()
    runs = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    return labels.add(image, name, where, box=(x, y, x + w, y + h), segmentation=runs)
