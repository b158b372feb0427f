"""Real images with all kinds of annotations at once: boxes, masks, keypoints, semantic, panoptic.

The first images of COCO train2017 where they are (``$DETECTRON2_DATASETS``, or ``../shared/data``
beside the checkout), otherwise the embedded digits. What a set lacks is made from what it has:
keypoints are spread over each box, semantic maps come from the panoptic segments or the masks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import polygons_to_bitmask
from PIL import Image
from pycocotools import mask as rle

from wsbcn_d2.data import build_digits
from wsbcn_d2.data.digits import annotation_file

__all__ = ["HAS_COCO", "NUM_STUFF", "NUM_THINGS", "annotated_images"]

ROOT = Path(__file__).resolve().parents[1]
DATASETS = Path(os.environ.get("DETECTRON2_DATASETS", ROOT.parent / "shared" / "data")).resolve()
ANNOTATIONS = DATASETS / "coco" / "annotations"
HAS_COCO = (ANNOTATIONS / "instances_train2017.json").is_file()
# Of the semantic maps: 0 is every thing, then detectron2's 53 classes of stuff; 255 is ignored.
NUM_STUFF = 54
# Of the panoptic segments: things are numbered from 0, stuff behind them.
NUM_THINGS = 80

# A street with four people and a car, a meal, people at a table: medium and large objects.
COCO_IDS = (192, 9, 260, 404)


def annotated_images(folder: Path, coco: bool = HAS_COCO) -> list[dict[str, Any]]:
    """A few images in detectron2's dataset format, with all annotations.

    Args:
        folder: where the semantic and panoptic maps are written.
        coco: from COCO, otherwise digits.

    Returns:
        dicts with ``annotations`` (``bbox``, ``segmentation`` as polygons or run lengths,
        ``keypoints``), ``sem_seg_file_name``, ``pan_seg_file_name`` and ``segments_info``.
    """
    dicts = _coco() if coco else _digits()
    for image in dicts:
        for annotation in image["annotations"]:
            annotation["keypoints"] = _keypoints(annotation["bbox"])
        labels, panoptic, segments = _maps(image)
        for key, values in (("sem_seg_file_name", labels), ("pan_seg_file_name", panoptic)):
            image[key] = str(folder / f"{key}_{image['image_id']}.png")
            Image.fromarray(values).save(image[key])
        image["segments_info"] = segments
    return dicts


def _coco() -> list[dict[str, Any]]:
    dicts = load_coco_json(
        str(ANNOTATIONS / "instances_train2017.json"), str(DATASETS / "coco" / "train2017")
    )
    by_id = {image["image_id"]: image for image in dicts}
    panoptic = json.loads((ANNOTATIONS / "panoptic_train2017.json").read_text())
    by_image = {segments["image_id"]: segments for segments in panoptic["annotations"]}
    chosen = [by_id[number] for number in COCO_IDS]
    for image in chosen:
        image["panoptic"] = by_image[image["image_id"]]
        image["annotations"] = [a for a in image["annotations"] if not a["iscrowd"]]
    return chosen


def _digits() -> list[dict[str, Any]]:
    folder = build_digits()
    file = annotation_file(folder, "train")
    dicts = load_coco_json(str(file), str(folder / "train"))
    return [image for image in dicts if len(image["annotations"]) > 1][: len(COCO_IDS)]


def _keypoints(bbox: list[float]) -> list[float]:
    """17 visible points, spread over a box (XYWH): rows of x, y, visibility."""
    x, y, w, h = bbox
    points = [
        (x + w * (0.1 + 0.8 * (i % 4) / 3), y + h * (0.1 + 0.8 * (i // 4) / 4), 2)
        for i in range(17)
    ]
    return [float(number) for point in points for number in point]


def _maps(image: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Semantic map (H, W), panoptic ids as colours (H, W, 3), and the panoptic segments."""
    if "panoptic" in image:
        return _maps_of_coco(image.pop("panoptic"))
    height, width = image["height"], image["width"]
    labels = np.ones((height, width), np.uint8)  # one kind of stuff: the background
    ids = np.full((height, width), 1)
    segments = [{"id": 1, "category_id": NUM_THINGS, "isthing": 0, "iscrowd": 0}]
    for number, annotation in enumerate(image["annotations"], start=2):
        mask = _bitmask(annotation["segmentation"], height, width)
        labels[mask] = 0
        ids[mask] = number
        category = annotation["category_id"]
        segments.append({"id": number, "category_id": category, "isthing": 1, "iscrowd": 0})
    return labels, _colours(ids), segments


def _maps_of_coco(panoptic: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    things = MetadataCatalog.get("coco_2017_train_panoptic").thing_dataset_id_to_contiguous_id
    # Numbers of stuff: 80 to 132 among all classes, 1 to 53 in the semantic maps.
    among_all = MetadataCatalog.get("coco_2017_train_panoptic").stuff_dataset_id_to_contiguous_id
    apart = MetadataCatalog.get(
        "coco_2017_train_panoptic_separated"
    ).stuff_dataset_id_to_contiguous_id
    file = ANNOTATIONS / "panoptic_train2017" / panoptic["file_name"]
    colours = np.asarray(Image.open(file).convert("RGB")).astype(int)
    ids = colours @ np.array([1, 256, 256**2])
    labels = np.full(ids.shape, 255, np.uint8)
    segments = []
    for segment in panoptic["segments_info"]:
        category = segment["category_id"]
        isthing = category in things
        labels[ids == segment["id"]] = 0 if isthing else apart[category]
        number = things[category] if isthing else among_all[category]
        segments.append({**segment, "category_id": number, "isthing": int(isthing)})
    return labels, _colours(ids), segments


def _colours(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def _bitmask(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, dict):
        return rle.decode(segmentation).astype(bool)
    return polygons_to_bitmask([np.asarray(p) for p in segmentation], height, width)
