"""One small dataset, written as each labelling tool would export it."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ["round", "square"]


def make_objects(seed: int = 0, count: int = 10) -> list[dict[str, Any]]:
    """Images of 64 to 96 pixels, each with one to three rectangles or octagons on noise.

    The corners are whole pixels, at least 1, so that every format can hold them exactly.
    """
    random = np.random.default_rng(seed)
    scenes = []
    for number in range(count):
        height, width = (int(side) for side in random.integers(64, 97, 2))
        pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
        objects = []
        for _ in range(int(random.integers(1, 4))):
            w, h = (int(side) for side in random.integers(16, 30, 2))
            x, y = int(random.integers(1, width - w)), int(random.integers(1, height - h))
            category = int(random.integers(2))
            cut = 0 if category else 5
            polygon = [
                *(x + cut, y, x + w - cut, y, x + w, y + cut, x + w, y + h - cut),
                *(x + w - cut, y + h, x + cut, y + h, x, y + h - cut, x, y + cut),
            ]
            pixels[y : y + h, x : x + w, category] = 255
            objects.append({"category": category, "box": [x, y, x + w, y + h], "polygon": polygon})
        scenes.append({"name": f"{number:03d}.jpg", "pixels": pixels, "objects": objects})
    return scenes


def _save_images(folder: Path, scenes: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        Image.fromarray(scene["pixels"]).save(folder / scene["name"], quality=95)


def write_coco(folder: Path, scenes: list[dict[str, Any]]) -> None:
    _save_images(folder / "images", scenes)
    images, annotations = [], []
    for i, scene in enumerate(scenes):
        height, width = scene["pixels"].shape[:2]
        images.append({"id": i, "file_name": scene["name"], "height": height, "width": width})
        for thing in scene["objects"]:
            x0, y0, x1, y1 = thing["box"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 5 + thing["category"],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": [thing["polygon"]],
                }
            )
    categories = [{"id": 5 + i, "name": name} for i, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_default.json").write_text(json.dumps(content))


def write_voc(folder: Path, scenes: list[dict[str, Any]]) -> None:
    _save_images(folder / "JPEGImages", scenes)
    (folder / "Annotations").mkdir()
    for scene in scenes:
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = scene["name"]
        size = ET.SubElement(root, "size")
        ET.SubElement(size, "width").text = str(scene["pixels"].shape[1])
        ET.SubElement(size, "height").text = str(scene["pixels"].shape[0])
        for thing in scene["objects"]:
            element = ET.SubElement(root, "object")
            ET.SubElement(element, "name").text = NAMES[thing["category"]]
            box = ET.SubElement(element, "bndbox")
            x0, y0, x1, y1 = thing["box"]
            # VOC counts from 1, and its last pixel belongs to the box.
            for key, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
                ET.SubElement(box, key).text = str(value)
        ET.ElementTree(root).write(folder / "Annotations" / f"{scene['name'][:-4]}.xml")


def write_yolo(folder: Path, scenes: list[dict[str, Any]], polygons: bool = False) -> None:
    _save_images(folder / "images" / "train", scenes)
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    for scene in scenes:
        height, width = scene["pixels"].shape[:2]
        lines = []
        for thing in scene["objects"]:
            x0, y0, x1, y1 = thing["box"]
            values = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height]
            values += [(x1 - x0) / width, (y1 - y0) / height]
            if polygons:
                sides = (width, height)
                values = [v / sides[i % 2] for i, v in enumerate(thing["polygon"])]
            lines.append(" ".join([str(thing["category"]), *(f"{v:.9f}" for v in values)]))
        (labels / f"{scene['name'][:-4]}.txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text(f"train: images/train\nnc: 2\nnames: {NAMES}\n")


def write_yolo_polygons(folder: Path, scenes: list[dict[str, Any]]) -> None:
    write_yolo(folder, scenes, polygons=True)


def write_labelme(folder: Path, scenes: list[dict[str, Any]]) -> None:
    _save_images(folder, scenes)
    for scene in scenes:
        shapes = [
            {
                "label": NAMES[thing["category"]],
                "points": [thing["polygon"][i : i + 2] for i in range(0, 16, 2)],
                "group_id": None,
                "shape_type": "polygon",
                "flags": {},
            }
            for thing in scene["objects"]
        ]
        height, width = scene["pixels"].shape[:2]
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": scene["name"]}
        content |= {"imageData": None, "imageHeight": height, "imageWidth": width}
        (folder / f"{scene['name'][:-4]}.json").write_text(json.dumps(content, indent=2))


def write_csv(folder: Path, scenes: list[dict[str, Any]]) -> None:
    _save_images(folder / "images", scenes)
    with open(folder / "boxes.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for scene in scenes:
            height, width = scene["pixels"].shape[:2]
            for thing in scene["objects"]:
                name = NAMES[thing["category"]]
                writer.writerow([scene["name"], width, height, name, *thing["box"]])


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "yolo_polygons": write_yolo_polygons,
    "labelme": write_labelme,
    "csv": write_csv,
}
WITH_MASKS = ("coco", "yolo_polygons", "labelme")
