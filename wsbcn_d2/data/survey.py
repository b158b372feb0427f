"""A whole dataset looked over: what the check before a run finds, every file, and what is in it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from .check import check_coco_json, read_coco_json
from .check_rules import has_no_polygon
from .findings import Finding, Needs, Report, first_few
from .formats import OwnData, Split

__all__ = ["SplitSurvey", "survey"]

# Pixels of the shorter side: less than a stride of the finest feature map.
_TINY = 4
_SKEW = 100
_EXAMPLES = 4
_ORIENTATION = 0x0112
_PLAIN_MODES = ("RGB", "L", "I", "I;16", "I;16B")  # of 16 bits: the check tells


@dataclass
class SplitSurvey:
    """What a split holds.

    Attributes:
        name: ``"train"`` or ``"val"``.
        report: what is wrong with it.
        counts: what there is, by name.
        objects: of each class, by its name.
        files: image id to path.
        annotations: image id to its annotations, for pictures.
    """

    name: str
    report: Report
    counts: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    files: dict[Any, str] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)


def survey(own: OwnData, *, masks: bool, progress: bool = True) -> list[SplitSurvey]:
    """Look over both splits of a dataset.

    Args:
        own: from `read_own_data`.
        masks: whether a model with a mask head is to be trained.
        progress: show a bar, as every file is read.
    """
    surveys = []
    for name, split in (("train", own.train), ("val", own.val)):
        needs = Needs(name == "train", len(own.classes), masks=masks, sample=0)
        report = check_coco_json(split.json_file, split.image_root, needs)
        report.source = f"{name}: {split.origin}"
        found = SplitSurvey(name, report)
        _look_at_labels(found, split)
        if not report.has_errors():
            _look_at_files(found, progress)
        surveys.append(found)
    _compare(*surveys)
    return surveys


def _look_at_labels(found: SplitSurvey, split: Split) -> None:
    content = read_coco_json(split.json_file)
    images = [i for i in content["images"] if isinstance(i, dict) and "id" in i]
    annotations = [a for a in content["annotations"] if isinstance(a, dict)]
    found.files = {
        image["id"]: os.path.join(split.image_root, str(image.get("file_name", "")))
        for image in images
    }
    found.counts = {"images": len(images), "objects": len(annotations)}
    names = {c.get("id"): str(c.get("name")) for c in content["categories"] if isinstance(c, dict)}
    if found.report.has_errors():
        return
    counts = Counter(annotation["category_id"] for annotation in annotations)
    found.objects = {name: counts[number] for number, name in sorted(names.items())}
    sides = {image["id"]: (image["width"], image["height"]) for image in images}
    kept = [
        a
        for a in annotations
        if not a.get("iscrowd") and not has_no_polygon(a) and _is_visible(a, sides)
    ]
    with_objects = {a["image_id"] for a in kept}
    found.counts |= {
        "crowds": sum(bool(a.get("iscrowd")) for a in annotations),
        "with a mask": sum(bool(a.get("segmentation")) for a in annotations),
        "images without objects": len(images) - len(with_objects),
        "left out by detectron2": f"{len(annotations) - len(kept)} objects"
        + (f", {len(images) - len(with_objects)} images" if found.name == "train" else ""),
        "image sides (px)": _spread([side for pair in sides.values() for side in pair]),
        "object sides (px)": _spread([side for a in kept for side in a["bbox"][2:]]),
    }
    tiny = [a for a in kept if min(a["bbox"][2:]) < _TINY]
    if tiny:
        where = first_few(a.get("source", a["id"]) for a in tiny)
        what = (
            f"{len(tiny)} of {len(annotations)} objects are less than {_TINY} pixels wide or high"
        )
        _warn(found, f"{what} ({where})", tiny)
    flat = [a for a in kept if _has_no_area(a)]
    if flat:
        where = first_few(a.get("source", a["id"]) for a in flat)
        what = "objects have a mask without area: a line that is not closed, or run lengths of 0"
        _warn(found, f"{len(flat)} of {len(annotations)} {what} ({where})", flat)
    absent = [name for name, count in found.objects.items() if not count]
    if absent and found.name == "train":
        _warn(found, f"{len(absent)} classes have no object: {first_few(absent)}")
    present = {name: count for name, count in found.objects.items() if count}
    most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
    if present[most] > _SKEW * present[least]:
        _warn(
            found,
            f"class {least!r} has {present[least]} objects, and {most!r} {present[most]}: a rare "
            "class may need a RepeatFactorTrainingSampler",
        )


def _has_no_area(annotation: dict[str, Any]) -> bool:
    """Whether all polygons enclose nothing, or the run lengths have no pixel.

    A polygon is closed from its last point to its first, whether or not that is repeated; what was
    drawn as an open line there and back again has no area.
    """
    masks = annotation.get("segmentation")
    if isinstance(masks, dict) and isinstance(masks["counts"], list):
        return not any(masks["counts"][1::2])
    if not isinstance(masks, list) or not masks:
        return False
    return not any(map(_polygon_area, masks))


def _polygon_area(polygon: Sequence[float]) -> float:
    """Twice the area, by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    after = zip([*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x * v - u * y for x, y, (u, v) in zip(xs, ys, after, strict=True)))


def _is_visible(annotation: dict[str, Any], sides: dict[Any, tuple[int, int]]) -> bool:
    if annotation["image_id"] not in sides:
        return False
    width, height = sides[annotation["image_id"]]
    x, y, w, h = annotation["bbox"]
    return min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{min(values):.0f} to {max(values):.0f}, median {np.median(values):.0f}"


def _look_at_files(found: SplitSurvey, progress: bool) -> None:
    modes: dict[str, list[Any]] = {}
    turned, animated = [], []
    for number, path in tqdm(found.files.items(), f"Reading {found.name}", disable=not progress):
        found.digests.setdefault(hashlib.sha256(Path(path).read_bytes()).hexdigest(), []).append(
            path
        )
        with Image.open(path) as image:
            modes.setdefault(image.mode, []).append(number)
            if image.getexif().get(_ORIENTATION, 1) != 1:
                turned.append(number)
            if getattr(image, "n_frames", 1) > 1:
                animated.append(number)
    found.counts["modes"] = ", ".join(f"{len(ids)} {mode}" for mode, ids in sorted(modes.items()))
    total = len(found.files)
    odd = {mode: ids for mode, ids in modes.items() if mode not in _PLAIN_MODES}
    for mode, ids in odd.items():
        what = "transparency is dropped" if mode in ("RGBA", "LA", "PA") else "converted by Pillow"
        _warn_of_images(found, f"{len(ids)} of {total} images are {mode}: {what}", ids)
    if turned:
        what = "are turned by their EXIF orientation: the labels must fit the turned image"
        _warn_of_images(found, f"{len(turned)} of {total} images {what}", turned)
    if animated:
        what = "have several frames, of which the first is used"
        _warn_of_images(found, f"{len(animated)} of {total} images {what}", animated)
    twice = [paths for paths in found.digests.values() if len(paths) > 1]
    if twice:
        what = (
            f"{sum(map(len, twice))} image files are copies of each other: {' = '.join(twice[0])}"
        )
        _warn(found, what)


def _warn(found: SplitSurvey, message: str, examples: Sequence[Any] = ()) -> None:
    found.report.findings.append(Finding("warning", message, examples[:_EXAMPLES]))


def _warn_of_images(found: SplitSurvey, message: str, ids: Sequence[Any]) -> None:
    _warn(found, f"{message} (image id {first_few(ids)})", [{"image_id": i} for i in ids])


def _compare(train: SplitSurvey, val: SplitSurvey) -> None:
    """Leakage: the same file on both sides."""
    shared = [digest for digest in val.digests if digest in train.digests]
    if shared:
        first = f"{train.digests[shared[0]][0]} = {val.digests[shared[0]][0]}"
        val.report.add(
            "error",
            f"{len(shared)} image files are in the training data too, byte for byte: {first}",
        )
