"""COCO's format, in the layouts that labelling tools export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..check import read_coco_json
from .labels import split_of

__all__ = ["class_names", "find", "find_images", "holds", "read"]

_HEAD = 1 << 16


def holds(file: Path, *keys: str) -> bool:
    """Whether a JSON file has one of the keys near its start; it may be gigabytes long."""
    with open(file, encoding="utf-8", errors="replace") as opened:
        head = opened.read(_HEAD)
    return any(f'"{key}"' in head for key in keys)


def find(path: Path) -> dict[str, Any] | None:
    """Split to the JSON file, or None where ``path`` is none and has none.

    Args:
        path: the file, or the folder with it: in the folder itself, ``annotations/``, or ``train/``
            and ``val/`` (or ``valid/``).
    """
    if path.is_file():
        return {"": path} if path.suffix == ".json" else None
    folders = [path, path / "annotations"]
    folders += [folder for folder in sorted(path.glob("*/")) if split_of(folder.name)]
    files = [
        file
        for folder in folders
        for file in sorted(folder.glob("*.json"))
        if not holds(file, "shapes") and holds(file, "images", "annotations", "categories")
    ]
    if not files:
        return None
    if len(files) == 1:
        return {"": files[0]}
    found = {split_of(file.stem) or split_of(file.parent.name): file for file in files}
    if "train" not in found or len(found) < len(files):
        names = ", ".join(str(file.relative_to(path)) for file in files)
        raise UserError(f"{path}: which of {names} is it? Name it: data.train=FILE data.val=FILE")
    return found


def find_images(file: Path, content: dict[str, Any]) -> Path:
    """The folder that the images' ``file_name`` are relative to: where the first one is found.

    Raises:
        UserError: it is nowhere.
    """
    first = content["images"][0]
    name = str(first.get("file_name", "")) if isinstance(first, dict) else ""
    split = split_of(file.stem) or split_of(file.parent.name)
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    folders = [base, base / "images", file.parent, base / "images" / split, base / "JPEGImages"]
    if split:
        folders += sorted(folder for folder in base.glob("*/") if split_of(folder.name) == split)
    for folder in folders:
        if (folder / name).is_file():
            return folder
    if not name:
        return file.parent  # the check before training says what is wrong
    looked = ", ".join(dict.fromkeys(map(os.path.abspath, folders)))
    raise UserError(f"{file}: its first image, {name}, is in none of {looked}")


def class_names(content: dict[str, Any]) -> list[str]:
    """In the order of the model's outputs: by id, as detectron2 sorts them."""
    categories = [c for c in content["categories"] if isinstance(c, dict) and "id" in c]
    if not all(isinstance(category["id"], int) for category in categories):
        return [str(category.get("name")) for category in categories]  # the check tells
    return [str(c.get("name")) for c in sorted(categories, key=lambda category: category["id"])]


def read(file: Path) -> tuple[Path, dict[str, Any]]:
    """The file and its content, of which the lists are there, but unchecked.

    Raises:
        UserError: it cannot be read, or a list is missing.
    """
    return file, read_coco_json(str(file))
