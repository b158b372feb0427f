"""Label maps that detectron2 does not register: the digits, COCO's things and stuff, PASCAL VOC.

``cityscapes_fine_sem_seg_train`` and ``ade20k_sem_seg_train`` are detectron2's own.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from pycocotools import mask as mask_api

from wsbcn_d2.data import build_digits
from wsbcn_d2.data.digits import CLASS_NAMES, SPLITS, annotation_file, cache_root

__all__ = ["IGNORE", "register_datasets"]

IGNORE = 255
VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

Record = dict[str, Any]


def register_datasets() -> None:
    """Register the datasets with detectron2; build and read nothing.

    ``digits_sem_seg_{train,val}``: background and ten digits, of the embedded scenes.
    ``coco_2017_{train,val}_sem_seg``: the 133 things and stuff of the panoptic annotations.
    ``voc_2012_sem_seg_{train,train_aug,val}``: ``VOC2012`` in detectron2's layout; ``train_aug``
    with SBD's maps in ``SegmentationClassAug`` and the list ``trainaug.txt`` beside ``train.txt``.
    """
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    for split in SPLITS:
        _register(f"digits_sem_seg_{split}", partial(_digits, split), ["background", *CLASS_NAMES])
    names = [category["name"] for category in COCO_CATEGORIES]
    for split in ("train", "val"):
        coco = Path(root, "coco")
        paths = {
            "image_root": str(coco / f"{split}2017"),
            "panoptic_root": str(coco / "annotations" / f"panoptic_{split}2017"),
            "panoptic_json": str(coco / "annotations" / f"panoptic_{split}2017.json"),
        }
        _register(f"coco_2017_{split}_sem_seg", partial(_coco, **paths), names, **paths)
    voc = Path(root, "VOC2012")
    for split, maps, listed in (
        ("train", "SegmentationClass", "train"),
        ("train_aug", "SegmentationClassAug", "trainaug"),
        ("val", "SegmentationClass", "val"),
    ):
        load = partial(_voc, voc, maps, listed)
        _register(f"voc_2012_sem_seg_{split}", load, VOC_CLASSES, dirname=str(voc))


def _register(name: str, load: Any, classes: Sequence[str], **metadata: Any) -> None:
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            stuff_classes=list(classes), ignore_label=IGNORE, evaluator_type="sem_seg", **metadata
        )


def _digits(split: str) -> list[Record]:
    folder = build_digits()
    records = load_coco_json(str(annotation_file(folder, split)), str(folder / split))
    for record in records:
        path = cache_root() / "digits-v1-sem-seg" / split / Path(record["file_name"]).name
        record["sem_seg_file_name"] = str(path)
        annotations = record.pop("annotations")
        if not path.exists():
            labels = np.zeros((record["height"], record["width"]), dtype=np.uint8)
            for annotation in annotations:
                mask = mask_api.decode(annotation["segmentation"]).astype(bool)
                labels[mask] = annotation["category_id"]  # COCO's: from 1
            _save(path, labels)
    return records


def _coco(image_root: str, panoptic_root: str, panoptic_json: str) -> list[Record]:
    content = json.loads(Path(panoptic_json).read_text(encoding="utf-8"))
    numbers = {category["id"]: i for i, category in enumerate(COCO_CATEGORIES)}
    images = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        split = Path(image_root).name
        path = cache_root() / "coco-sem-seg" / split / annotation["file_name"]
        if not path.exists():
            with Image.open(Path(panoptic_root, annotation["file_name"])) as segments:
                rgb = np.asarray(segments.convert("RGB")).astype(np.int64)
            ids = rgb @ np.array([1, 256, 256**2])
            labels = np.full(ids.shape, IGNORE, dtype=np.uint8)
            for segment in annotation["segments_info"]:
                labels[ids == segment["id"]] = numbers[segment["category_id"]]
            _save(path, labels)
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "sem_seg_file_name": str(path),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
            }
        )
    return records


def _voc(root: Path, maps: str, listed: str) -> list[Record]:
    names = (root / "ImageSets/Segmentation" / f"{listed}.txt").read_text().split()
    return [
        {
            "file_name": str(root / "JPEGImages" / f"{name}.jpg"),
            "sem_seg_file_name": str(root / maps / f"{name}.png"),
            "image_id": name,
        }
        for name in names
    ]


def _save(path: Path, labels: np.ndarray) -> None:
    """Write a label map whole or not at all; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        Image.fromarray(labels).save(partial_file, "png")
        os.replace(partial_file, path)
    finally:
        partial_file.unlink(missing_ok=True)
