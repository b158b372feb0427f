"""Sources of labelled images, each a list of records for `ClassificationMapper`.

A record has ``label``, ``image_id``, and ``file_name`` (a path), with ``offset`` and ``size`` where
the image is a part of that file; or the pixels themselves under ``pixels``, ``(H, W, 3)`` uint8.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS

from wsbcn_d2.data.digits import source_digits
from wsbcn_d2.errors import UserError

__all__ = ["DatasetError", "cifar", "digits", "image_folder", "tar_shards"]

Record = dict[str, Any]


class DatasetError(UserError):
    """A source of images that cannot be used; the message has the file or folder."""


def image_folder(root: str) -> list[Record]:
    """Images in a folder for each class, as ImageNet is kept: ``root/<class>/….jpg``.

    Labels follow the sorted names of the folders.

    Raises:
        DatasetError: no such folder, no classes in it, or a class without images.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DatasetError(
            f"no folder {folder.absolute()}: an image folder has one folder of images a class in it"
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise DatasetError(f"{folder} has no folders in it: it takes one of images for each class")
    records: list[Record] = []
    for label, name in enumerate(classes):
        files = sorted(
            entry.path
            for entry in os.scandir(folder / name)
            if entry.name.lower().endswith(IMG_EXTENSIONS)
        )
        if not files:
            raise DatasetError(
                f"{folder / name}: a class without images (of {', '.join(IMG_EXTENSIONS)}); add "
                "some, or delete the folder: labels follow the sorted names of the folders"
            )
        records += [
            {"file_name": path, "image_id": f"{name}/{os.path.basename(path)}", "label": label}
            for path in files
        ]
    return records


def tar_shards(shards: list[str]) -> list[Record]:
    """Images in tar files, in the layout that ``webdataset`` writes: ``key.jpg`` and ``key.cls``.

    Only where each image lies is read; ``webdataset`` itself reads shards as streams, in which a
    resumed run could not find its place. So the files must not be compressed.

    Args:
        shards: paths of the files.

    Raises:
        DatasetError: a file that is not there, is no tar file or ends too early, or an image
            without a label.
    """
    return [record for path in shards for record in _shard_records(os.path.expanduser(path))]


def _shard_records(path: str) -> Iterator[Record]:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        length = os.path.getsize(path)
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                key, extension = os.path.splitext(member.name)
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                if extension == ".cls":
                    file = shard.extractfile(member)
                    labels[key] = int(file.read()) if file else -1
                elif extension.lower() in IMG_EXTENSIONS:
                    images[key] = member.offset_data, member.size
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DatasetError(
            f"shard {path} cannot be read: {error}; it must be a whole, uncompressed tar file with "
            "an image (key.jpg) and a number (key.cls) for each key"
        ) from error
    lacking = sorted(images.keys() - labels.keys())
    if lacking or not images:
        what = f"no label {lacking[0]}.cls" if lacking else "no images"
        raise DatasetError(f"shard {path} has {what}; each key needs an image and a .cls file")
    for key, (offset, size) in images.items():
        yield {
            "file_name": path,
            "image_id": key,
            "label": labels[key],
            "offset": offset,
            "size": size,
        }


def cifar(root: str, split: str, num_classes: int = 10) -> list[Record]:
    """CIFAR-10 or CIFAR-100 from their own files, or CIFAR-10 as an image folder.

    Args:
        root: of ``cifar-10-batches-py`` or ``cifar-100-python``; or of ``<split>/<class>/….jpg``.
        split: ``"train"`` (50,000 images) or ``"test"`` (10,000).
        num_classes: 10 or 100.

    Raises:
        DatasetError: the files are not there or have other checksums than the published ones.
    """
    kind = {10: CIFAR10, 100: CIFAR100}[num_classes]
    path = os.path.expanduser(root)
    if num_classes == 10 and os.path.isdir(os.path.join(path, split)):
        return image_folder(os.path.join(path, split))
    try:
        dataset = kind(path, train=split == "train")
    except RuntimeError as error:
        raise DatasetError(
            f"CIFAR-{num_classes} is not in {os.path.abspath(path)}, or has other checksums than "
            f"published: {os.path.join(path, kind.base_folder)}; unpack {kind.filename} there"
        ) from error
    return _pixel_records(dataset.data, dataset.targets, kind.base_folder)


def digits(split: str, size: int = 16) -> list[Record]:
    """The embedded handwritten digits, one an image.

    Args:
        split: ``"train"`` (1,438 images) or ``"val"`` (359).
        size: pixels a side, a multiple of 8.
    """
    images, labels = source_digits(split)
    large = images.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    pixels = np.repeat((large * 15).astype(np.uint8)[..., None], 3, axis=3)
    return _pixel_records(pixels, labels.tolist(), f"digits_{split}")


def _pixel_records(pixels: np.ndarray, labels: list[int], name: str) -> list[Record]:
    return [
        {"file_name": name, "image_id": i, "label": label, "pixels": image}
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]
