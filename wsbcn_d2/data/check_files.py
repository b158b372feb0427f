"""Checks that the image files of a dataset exist, and that a sample of them can be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from .findings import Finding, Needs, Severity, first_few
from .read_image import is_16_bit

__all__ = ["check_files"]

_EXAMPLES = 4


def check_files(images: Sequence[dict[str, Any]], image_root: str, needs: Needs) -> list[Finding]:
    """Check the image files of a dataset.

    Each folder is listed once, as checking files one by one would take minutes on a network file
    system. A sample of images, spread over the dataset, is decoded.

    Args:
        images: entries with ``id``, ``file_name`` and optionally ``width`` and ``height``.
        image_root: folder that file names are relative to.
        needs: with ``skip_bad``, errors of training images become warnings; ``sample`` is the
            number of images to decode.
    """
    if image_root and "://" not in image_root and not os.path.isdir(image_root):
        return [Finding("error", f"no folder {os.path.abspath(image_root)} of images")]
    paths = [os.path.join(image_root, image["file_name"]) for image in images]
    missing = _missing(paths)
    findings = []
    severity: Severity = "warning" if needs.training and needs.skip_bad else "error"
    if missing:
        ids = first_few(images[i]["id"] for i in missing)
        first = paths[missing[0]]
        findings.append(
            Finding(
                severity if len(missing) < len(images) else "error",
                f"{len(missing)} of {len(images)} image files are not there (image id {ids}; the "
                f"first: {first})",
            )
        )
    gone = set(missing)
    there = [i for i in range(len(images)) if i not in gone]
    wanted = needs.sample or len(there)
    step = max(1, len(there) // max(1, wanted))
    sample = there[::step][:wanted]
    unreadable: list[str] = []
    bad: list[int] = []
    deep: list[int] = []
    brightest = 0
    for i in sample:
        fault, bright = _look(paths[i], images[i])
        if fault:
            unreadable.append(f"{paths[i]} (image id {images[i]['id']}): {fault}")
            bad.append(i)
        elif bright is not None:
            deep.append(i)
            brightest = max(brightest, bright)
    if unreadable:
        findings.append(
            Finding(
                severity,
                f"{len(unreadable)} of {len(sample)} sampled images cannot be used; the first: "
                f"{unreadable[0]}",
                [images[i] for i in bad[:_EXAMPLES]],
            )
        )
    if deep:
        findings.append(
            Finding(
                "warning",
                f"{len(deep)} of {len(sample)} sampled images have 16 bits (image id "
                f"{first_few(images[i]['id'] for i in deep)}): they are scaled to 8 bits by "
                f"255/65535; their largest value is {brightest}"
                + (", so they will be dark: scale the files" if brightest < 2**14 else ""),
                [images[i] for i in deep[:_EXAMPLES]],
            )
        )
    return findings


def _missing(paths: Sequence[str]) -> list[int]:
    listed: dict[str, set[str]] = {}
    missing = []
    for i, path in enumerate(paths):
        if "://" in path:
            continue
        folder, name = os.path.split(path)
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(folder or "."))
            except OSError:
                listed[folder] = set()
        # Asked for again: a file system may not tell capitals from small letters, or list nothing.
        if name not in listed[folder] and not os.path.exists(path):
            missing.append(i)
    return missing


def _look(path: str, image: dict[str, Any]) -> tuple[str, int | None]:
    """What is wrong with an image file, or ""; and a 16-bit image's largest value."""
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as opened:
            opened.load()
            # As detectron2's read_image: turned as its EXIF orientation says.
            width, height = ImageOps.exif_transpose(opened).size
            bright = int(np.asarray(opened).max()) if is_16_bit(opened) else None
    except Exception as error:  # whatever a decoder makes of it
        return f"{type(error).__name__}: {error}", None
    expected = image.get("width", width), image.get("height", height)
    if (width, height) != expected:
        return (
            f"it is {width}x{height} (width x height), and the annotations say "
            f"{expected[0]}x{expected[1]}",
            None,
        )
    return "", bright
