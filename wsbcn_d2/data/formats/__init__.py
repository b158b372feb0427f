"""A user's own dataset, in the formats that labelling tools export, as COCO files.

Not through a library: the one that reads these formats (supervision, 0.31) turns polygons into
bitmaps of the whole image, forgets crowds, stops at the first fault without the line it is in, and
brings along a video decoder and SciPy.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import UserError
from ..digits import CACHE_VARIABLE, cache_root
from . import coco, csv_boxes, labelme, voc, yolo
from .labels import LabelSet, hold_out, split_of

__all__ = ["OwnData", "Split", "read_own_data"]

# YOLO first: its data.yaml says all. CSV last: it may lie beside anything.
_FORMATS = {"YOLO": yolo, "COCO": coco, "VOC": voc, "LabelMe": labelme, "CSV": csv_boxes}


@dataclass(frozen=True)
class Split:
    """Training or validation data in COCO's format.

    Attributes:
        json_file: the annotations.
        image_root: what file names are relative to; empty where they are absolute.
        origin: what the user knows the data by.
        num_images: in the file.
    """

    json_file: str
    image_root: str
    origin: str
    num_images: int


@dataclass(frozen=True)
class OwnData:
    """A user's dataset.

    Attributes:
        train, val: its splits.
        classes: names in the order of the model's outputs.
        masks: whether any object has a mask.
        run_lengths: whether a mask is run lengths, not polygons.
        notes: what the user should know of how it was read.
    """

    train: Split
    val: Split
    classes: list[str]
    masks: bool
    run_lengths: bool
    notes: list[str] = field(default_factory=list)


def read_own_data(train: str, val: str = "", val_share: float = 0.2, seed: int = 0) -> OwnData:
    """Read a dataset, and hold images out for validation where it has none of its own.

    What is not in COCO files already is written as such into ``$WSBCN_D2_CACHE/own_data``, under a
    name that follows from its content.

    Args:
        train: a folder, or a file: COCO's JSON, YOLO's ``data.yaml``, a CSV of boxes.
        val: the same for the validation data; empty: those of ``train``, or a held-out share of it.
        val_share: the share of the images to hold out, between 0 and 1.
        seed: chooses which.

    Raises:
        UserError: no format that is known, or faults in the labels: with file and line or id.
    """
    notes: list[str] = []
    parts = _read_splits(train, val, notes)
    if all(isinstance(part, LabelSet) for part in parts.values()):
        classes = _classes(parts)
        contents = {split: labels.to_coco(classes) for split, labels in parts.items()}
        origins = {split: str(labels.origin) for split, labels in parts.items()}
        roots, files = dict.fromkeys(parts, ""), {}
        notes += [note for labels in parts.values() for note in labels.notes]
    else:
        contents = {split: content for split, (_, content) in parts.items()}
        origins = files = {split: str(file) for split, (file, _) in parts.items()}
        roots = {split: str(coco.find_images(*part)) for split, part in parts.items()}
    if "val" not in contents:
        total = len(contents["train"]["images"])
        if total < 2:
            raise UserError(f"{train} has {total} images: one to train on and one to hold out")
        contents["train"], contents["val"] = hold_out(contents["train"], val_share, seed)
        held = len(contents["val"]["images"])
        notes.append(f"{held} of {total} images are held out for validation (seed {seed})")
        origins, roots = (dict.fromkeys(contents, of["train"]) for of in (origins, roots))
        files = {}
    splits = {
        split: Split(
            files.get(split) or _write(content, f"{Path(origins[split]).stem}_{split}"),
            roots[split],
            origins[split],
            len(content["images"]),
        )
        for split, content in contents.items()
    }
    masks = [
        annotation["segmentation"]
        for content in contents.values()
        for annotation in content["annotations"]
        if isinstance(annotation, dict) and annotation.get("segmentation")
    ]
    return OwnData(
        splits["train"],
        splits["val"],
        coco.class_names(contents["train"]),
        bool(masks),
        any(isinstance(mask, dict) for mask in masks),
        notes,
    )


def _read_splits(train: str, val: str, notes: list[str]) -> dict[str, Any]:
    """What the format's ``read`` returns of ``"train"``, and of ``"val"`` where there is one."""
    kind, sources = _find(Path(train).expanduser())
    notes.append(f"{train}: {kind}")
    if not val:
        if "test" in sources:
            notes.append("its test split is not used")
        read = _FORMATS[kind].read
        return {s or "train": read(source) for s, source in sources.items() if s != "test"}
    val_kind, val_sources = _find(Path(val).expanduser())
    notes.append(f"{val}: {val_kind}")
    if (kind == "COCO") != (val_kind == "COCO"):
        raise UserError(f"{train} is {kind} and {val} is {val_kind}: COCO goes with COCO only")
    return {
        "train": _FORMATS[kind].read(_only(train, sources, "train")),
        "val": _FORMATS[val_kind].read(_only(val, val_sources, "val")),
    }


def _find(path: Path) -> tuple[str, dict[str, Any]]:
    """The format, and split to what its ``read`` takes."""
    if not path.exists():
        raise UserError(f"the dataset {path} is not there (in {os.getcwd()})")
    folders = {split_of(folder.name): folder for folder in sorted(path.glob("*/"))}
    for name, module in _FORMATS.items():
        sources = None
        if name not in ("YOLO", "COCO") and "train" in folders:
            # One dataset a folder, as exported with its split.
            each = {split: _in_folder(module, folder) for split, folder in folders.items() if split}
            sources = {split: source for split, source in each.items() if source is not None}
        sources = sources or module.find(path)
        if sources:
            return name, sources
    raise UserError(
        f"{path} holds no labels in a format that is read here: COCO (.json), Pascal VOC (.xml), "
        "YOLO (data.yaml), LabelMe (.json with 'shapes'), CSV (.csv with the columns image, xmin, "
        "ymin, xmax, ymax, class); see docs/own_data.md"
    )


def _in_folder(module: ModuleType, folder: Path) -> Any:
    found = module.find(folder)
    return found[""] if found and "" in found else None


def _only(path: str, sources: dict[str, Any], split: str) -> Any:
    if len(sources) == 1:
        return next(iter(sources.values()))
    if split in sources:
        return sources[split]
    raise UserError(f"{path} has {', '.join(sources)}, not {split!r}; name one file or folder")


def _classes(parts: dict[str, LabelSet]) -> list[str]:
    for labels in parts.values():
        if not labels.images:
            labels.fault(labels.origin, "there are no images")
        labels.raise_faults()
    declared = [labels.classes for labels in parts.values() if labels.classes is not None]
    names: Sequence[str] = declared[0] if declared else []
    if any(classes != names for classes in declared):
        raise UserError(f"train has the classes {declared[0]}, val {declared[-1]}")
    found = {name for labels in parts.values() for name in labels.class_names()}
    if not found:
        raise UserError(f"{parts['train'].origin}: none of its images has an object")
    return list(names) or sorted(found)


def _write(content: dict[str, Any], name: str) -> str:
    """The path of a file of this content, written unless it is there."""
    text = json.dumps(content, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = cache_root() / "own_data" / f"{name}_{digest}.json"
    if not file.exists():
        building = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            building.write_text(text, encoding="utf-8")
            # Other processes may be doing the same.
            building.replace(file)
        except OSError as error:
            building.unlink(missing_ok=True)
            raise UserError(
                f"cannot write {file}: {error.strerror}; set {CACHE_VARIABLE} to a folder that can "
                "be written to"
            ) from error
    return str(file)
