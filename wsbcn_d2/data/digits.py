"""The digits dataset: instance segmentation of handwritten digits, without any download.

Real handwritten digits (1797 images of 8x8 pixels, shipped in ``digit_sources/``) are upscaled,
rotated and painted over crops of two photographs; see :mod:`.digit_scenes`. 400 training and 100
validation images in COCO's format. Training and validation share neither a source digit nor a part
of a photograph. Of the digits 95% are "small" in COCO's sense (an area below 32x32 pixels) and none
is "large": look at AP, not at APm and APl.

The files are the same bytes on every machine. The images are therefore PNG files that store
their pixels uncompressed (38 MB altogether): deflate's output differs between zlib versions.
The photographs are JPEG files without chroma subsampling, which libjpeg-turbo decodes to the
same pixels in all its versions. A SHA-256 over all files, checked after building, says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import struct
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import portalocker
from PIL import Image
from pycocotools import mask as mask_api
from tqdm import tqdm

from .digit_scenes import DigitScene, generate_scenes

__all__ = [
    "CACHE_VARIABLE",
    "CLASS_NAMES",
    "DIGITS_SHA256",
    "SPLITS",
    "annotation_file",
    "build_digits",
    "cache_root",
    "digits_folder",
    "folder_digest",
    "source_digits",
]

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "WSBCN_D2_CACHE"
CLASS_NAMES = tuple(str(digit) for digit in range(10))
SPLITS = {"train": 400, "val": 100}
# Of version 1. Whatever changes a byte of the files changes the folder's name and this.
DIGITS_SHA256 = "6834c51eb19cc4aac9214fa90b44983601372b1bfb7c6684237af92a5d83109f"

_FOLDER_NAME = "digits-v1"
_SOURCES = Path(__file__).with_name("digit_sources")
_SEEDS = {"train": 20190325, "val": 20190326}
# The last fifth, not a random one: neighbours in the file resemble each other. (An SVM on the
# pixels is right on 96% of the last fifth, on 99% of every fifth digit.)
_FIRST_VAL_DIGIT = 1438
# Columns of the 640-pixel wide photographs; both parts are wider than the widest image.
_COLUMNS = {"train": slice(0, 440), "val": slice(440, 640)}
_LOCK_TIMEOUT_S = 600.0
_STALE_AFTER_S = 3600.0


def cache_root() -> Path:
    """The cache folder: ``$WSBCN_D2_CACHE``, by default ``~/.cache/wsbcn_d2``."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/wsbcn_d2").expanduser().absolute()


def digits_folder(root: Path) -> Path:
    """Where the dataset lies, once built, in a cache folder."""
    return root / _FOLDER_NAME


def annotation_file(folder: Path, split: str) -> Path:
    """The COCO annotation file of a split.

    Args:
        folder: result of `build_digits`.
        split: ``"train"`` or ``"val"``.
    """
    return folder / "annotations" / f"digits_{split}.json"


def folder_digest(folder: Path) -> str:
    """SHA-256 (hexadecimal) over the names and contents of all files of a built dataset."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def build_digits(root: str | os.PathLike[str] | None = None, *, progress: bool = True) -> Path:
    """Build the dataset unless it is there already.

    It is built in a temporary folder and renamed when complete, so an interrupted build is
    never taken for a dataset. Any number of processes may call this at once: one builds, the
    others wait for it. Where the file system has no locks, each builds, and the first wins.

    Args:
        root: the cache folder; by default ``$WSBCN_D2_CACHE``, or ``~/.cache/wsbcn_d2``. The
            registered names ``digits_train`` and ``digits_val`` use the default only.
        progress: show a progress bar while building (some seconds).

    Returns:
        the dataset's folder, with ``train/``, ``val/`` and ``annotations/`` in it.

    Raises:
        FileExistsError: the folder exists but is not a complete dataset.
        OSError: the cache folder cannot be written to.
    """
    root = cache_root() if root is None else Path(root).expanduser().absolute()
    folder = digits_folder(root)
    if folder.exists():
        # A complete folder appears at once, by renaming; this one was damaged afterwards.
        if not _is_complete(folder):
            raise FileExistsError(
                f"{folder} exists but lacks annotation files; delete it, and it is built again"
            )
        return folder

    sources = _load_sources()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _build_lock(root):
            if not _is_complete(folder):
                _remove_stale(root)
                _build_and_publish(folder, *sources, progress=progress)
    except OSError as err:
        raise OSError(
            err.errno,
            f"cannot build the digits dataset in the cache folder {root} ({err}); "
            f"set {CACHE_VARIABLE} to a folder that can be written to",
        ) from err
    return folder


def _is_complete(folder: Path) -> bool:
    return all(annotation_file(folder, split).is_file() for split in SPLITS)


def source_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits that the scenes of a split are made of.

    Args:
        split: ``"train"`` or ``"val"``, which have no digit in common.

    Returns:
        images ``(N, 8, 8)``, grey levels 0 (paper) to 16 (ink), and labels ``(N,)``.
    """
    digits, labels, _ = _load_sources()
    part = {"train": slice(_FIRST_VAL_DIGIT), "val": slice(_FIRST_VAL_DIGIT, None)}[split]
    return digits[part], labels[part]


def _load_sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Digits ``(1797, 8, 8)``, labels ``(1797,)`` and photographs, each ``(427, 640, 3)``."""
    table = np.loadtxt(_SOURCES / "digits.csv.gz", delimiter=",", dtype=np.int64)
    photos = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(_SOURCES / name) as image:
            photos.append(np.asarray(image.convert("RGB")))
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1], photos


@contextlib.contextmanager
def _build_lock(root: Path) -> Iterator[None]:
    lock = portalocker.Lock(str(root / f"{_FOLDER_NAME}.lock"), timeout=_LOCK_TIMEOUT_S)
    try:
        lock.acquire()
    except portalocker.exceptions.LockException as err:
        logger.warning("No lock in %s (%s): building the digits dataset without one", root, err)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _remove_stale(root: Path) -> None:
    """Delete what killed builds have left. Not what is recent: locks may not work here."""
    for path in root.glob(f"{_FOLDER_NAME}.tmp-*"):
        with contextlib.suppress(OSError):  # another process may be deleting it too
            if time.time() - path.stat().st_mtime > _STALE_AFTER_S:
                shutil.rmtree(path)


def _build_and_publish(
    folder: Path,
    digits: np.ndarray,
    labels: np.ndarray,
    photos: Sequence[np.ndarray],
    *,
    progress: bool,
) -> None:
    # Not tempfile.mkdtemp: its mode 0700 would survive the renaming and lock out other users.
    building = folder.with_name(f"{_FOLDER_NAME}.tmp-{uuid.uuid4().hex}")
    try:
        _write_dataset(building, digits, labels, photos, progress=progress)
        digest = folder_digest(building)
        if digest != DIGITS_SHA256:
            logger.warning(
                "The digits dataset in %s has SHA-256 %s, not %s as published: the "
                "photographs' decoding differs here, and results may differ slightly from "
                "published ones",
                folder,
                digest,
                DIGITS_SHA256,
            )
        try:
            building.rename(folder)
        except OSError:
            if not _is_complete(folder):
                raise
            logger.info("Another process has built %s meanwhile", folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_dataset(
    folder: Path,
    digits: np.ndarray,
    labels: np.ndarray,
    photos: Sequence[np.ndarray],
    *,
    progress: bool,
) -> None:
    indices = {
        "train": range(_FIRST_VAL_DIGIT),
        "val": range(_FIRST_VAL_DIGIT, len(digits)),
    }
    (folder / "annotations").mkdir(parents=True)
    with tqdm(
        total=sum(SPLITS.values()), desc="Building digits", unit="image", disable=not progress
    ) as bar:
        for split, count in SPLITS.items():
            (folder / split).mkdir()
            regions = [photo[:, _COLUMNS[split]] for photo in photos]
            coco = _coco_header()
            scenes = generate_scenes(_SEEDS[split], count, digits, labels, indices[split], regions)
            for image_id, scene in enumerate(scenes, start=1):
                file_name = f"{image_id:06d}.png"
                (folder / split / file_name).write_bytes(_encode_png(scene.image))
                _append_scene(coco, image_id, file_name, scene)
                bar.update()
            text = json.dumps(coco, sort_keys=True, separators=(",", ":")) + "\n"
            annotation_file(folder, split).write_bytes(text.encode())


def _coco_header() -> dict[str, Any]:
    return {
        "info": {
            "description": "Handwritten digits over photographs, made by wsbcn_d2",
            "version": _FOLDER_NAME,
            "contributor": "digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten "
            "Digits, UCI; photographs: danielbuechele (china), vultilion (flower), CC BY 2.0",
        },
        "licenses": [],
        "categories": [
            {"id": i, "name": name, "supercategory": "digit"}
            for i, name in enumerate(CLASS_NAMES, start=1)
        ],
        "images": [],
        "annotations": [],
    }


def _append_scene(coco: dict[str, Any], image_id: int, file_name: str, scene: DigitScene) -> None:
    height, width = scene.image.shape[:2]
    coco["images"].append(
        {"id": image_id, "file_name": file_name, "height": height, "width": width}
    )
    for label, source, mask in zip(scene.labels, scene.sources, scene.masks, strict=True):
        rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [int(v) for v in mask_api.toBbox(rle)],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                "source_digit": source,  # the index in load_digits(); COCO has no such key
            }
        )


def _encode_png(image: np.ndarray) -> bytes:
    """A PNG file of an RGB image, ``(H, W, 3)`` uint8, whose bytes depend on nothing else."""
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each row: filter type 0, pixels
    rows[:, 1:] = image.reshape(height, -1)
    raw = rows.tobytes()
    stored = [b"\x78\x01"]
    for start in range(0, len(raw), 0xFFFF):  # the longest stored block of deflate
        block = raw[start : start + 0xFFFF]
        is_last = start + len(block) == len(raw)
        stored.append(struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF) + block)
    stored.append(struct.pack(">I", zlib.adler32(raw)))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", b"".join(stored))
        + chunk(b"IEND", b"")
    )
