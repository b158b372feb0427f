"""A detector's predictions beside the truth."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode
from detectron2.structures.masks import polygons_to_bitmask
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pycocotools import mask as mask_api
from torch import nn

__all__ = ["plot_detections", "plot_predictions"]

# Inches: an image's width in the grid, so that labels are readable whatever its own size.
_CELL = 3.4


def plot_predictions(
    model: nn.Module,
    dataset_name: str,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    output: str | os.PathLike[str],
    *,
    num_images: int = 8,
    score_threshold: float = 0.5,
) -> None:
    """Draw a grid of images of a dataset: the truth, and beside it the model's prediction.

    The images are spread evenly over those of the dataset that have annotations.

    Args:
        model: a detector; it is evaluated, on its device, and left in the mode it was in.
        dataset_name: registered with detectron2, with annotations.
        mapper: from a record of the dataset to an input of the model.
        output: the PNG to write.
        num_images: how many images; 0 draws nothing.
        score_threshold: predictions with a lower score are left out.
    """
    chosen = _choose(dataset_name, num_images)
    count = len(chosen)
    if count < 1:
        return
    images = [read_image(record["file_name"], "RGB") for record in chosen]

    columns = 2 if count > 3 else 1
    rows = -(-count // columns)
    ratio = float(np.median([image.shape[0] / image.shape[1] for image in images]))
    figure = Figure(
        figsize=(2 * columns * _CELL, rows * (_CELL * ratio + 0.3) + 0.5), layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(f"{dataset_name}: truth | prediction (scores from {score_threshold:g} on)")
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    names = MetadataCatalog.get(dataset_name).get("thing_classes", [])
    with inference_context(model), torch.no_grad():
        for i, (record, image) in enumerate(zip(chosen, images, strict=True)):
            left, right = grid[i // columns][2 * (i % columns) :][:2]
            truth = _truth(record, *image.shape[:2])
            _draw(left, image, truth, names)
            left.set_title(f"image {record.get('image_id', i)}: {len(truth)} objects", fontsize=9)
            objects = _predictions(model([mapper(dict(record))])[0])
            shown = [thing for thing in objects if thing.score >= score_threshold]
            _draw(right, image, shown, names)
            best = max((thing.score for thing in objects), default=None)
            note = "" if best is None else f" (best score {best:.2f})"
            right.set_title(f"predicted: {len(shown)} of {len(objects)}{note}", fontsize=9)
    figure.savefig(output, dpi=110)


def plot_detections(
    dataset_name: str,
    results: Mapping[str, str | os.PathLike[str]],
    *,
    num_images: int = 4,
    score_threshold: float = 0.5,
) -> Figure:
    """A row for each image: the truth, and beside it what each of several detectors found.

    Args:
        dataset_name: registered with detectron2, with annotations.
        results: by the detector's name, a ``coco_instances_results.json`` of that dataset.
        num_images: how many, spread evenly over those that have annotations.
        score_threshold: detections with a lower score are left out.
    """
    chosen = _choose(dataset_name, num_images)
    metadata = MetadataCatalog.get(dataset_name)
    names = metadata.get("thing_classes", [])
    numbers = metadata.get("thing_dataset_id_to_contiguous_id", {})
    found = {name: _detections(file, numbers, score_threshold) for name, file in results.items()}
    images = [read_image(record["file_name"], "RGB") for record in chosen]
    cell = 8 / (1 + len(found))  # inches
    height = sum(cell * image.shape[0] / image.shape[1] + 0.25 for image in images)
    figure = Figure(figsize=(8, height + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [image.shape[0] / image.shape[1] for image in images]
    grid = figure.subplots(len(chosen), 1 + len(found), squeeze=False, height_ratios=ratios)
    for axes in grid.flat:
        axes.axis("off")
    for row, record, image in zip(grid, chosen, images, strict=True):
        truth = _truth(record, *image.shape[:2])
        _draw(row[0], image, truth, names)
        row[0].set_title(f"image {record['image_id']}: {len(truth)} objects", fontsize=8)
        for axes, (name, things) in zip(row[1:], found.items(), strict=True):
            _draw(axes, image, things[record["image_id"]], names)
            axes.set_title(f"{name}: {len(things[record['image_id']])}", fontsize=8)
    return figure


def _choose(dataset_name: str, count: int) -> list[dict[str, Any]]:
    """Records of a dataset, spread evenly over those that have annotations."""
    records = DatasetCatalog.get(dataset_name)
    annotated = [record for record in records if record.get("annotations")] or records
    count = min(count, len(annotated))
    return [annotated[i * len(annotated) // count] for i in range(count)]


class _Thing(NamedTuple):
    """One object: its box (x0, y0, x1, y1), class, mask ``(H, W)`` and score (NaN for truth)."""

    box: Sequence[float]
    category: int
    mask: np.ndarray | None
    score: float


def _truth(record: dict[str, Any], height: int, width: int) -> list[_Thing]:
    things = []
    for annotation in record.get("annotations", []):
        shape = annotation.get("segmentation")
        mask = None
        if isinstance(shape, list) and shape:
            mask = polygons_to_bitmask(shape, height, width)
        elif isinstance(shape, dict):
            mask = mask_api.decode(shape).astype(bool)
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        things.append(_Thing(box, annotation["category_id"], mask, math.nan))
    return things


def _predictions(output: dict[str, Any]) -> list[_Thing]:
    if "instances" not in output:
        return []
    instances = output["instances"].to("cpu")
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    return [
        _Thing(box, category, None if masks is None else masks[i], score)
        for i, (box, category, score) in enumerate(
            zip(
                instances.pred_boxes.tensor.tolist(),
                instances.pred_classes.tolist(),
                instances.scores.tolist(),
                strict=True,
            )
        )
    ]


def _detections(
    file: str | os.PathLike[str], numbers: Mapping[int, int], score_threshold: float
) -> defaultdict[Any, list[_Thing]]:
    """The objects of a file of results by image id; ``numbers``: of classes, by the dataset's."""
    things: defaultdict[Any, list[_Thing]] = defaultdict(list)
    with open(file, encoding="utf-8") as opened:
        results = json.load(opened)
    for result in results:
        if result["score"] >= score_threshold:
            x, y, w, h = result["bbox"]
            shape = result.get("segmentation")
            mask = None if shape is None else mask_api.decode(shape).astype(bool)
            category = numbers.get(result["category_id"], result["category_id"])
            things[result["image_id"]].append(
                _Thing((x, y, x + w, y + h), category, mask, result["score"])
            )
    return things


def _draw(axes: Axes, image: np.ndarray, things: Sequence[_Thing], names: Sequence[str]) -> None:
    """An image with its objects, coloured by class (detectron2's Visualizer would need OpenCV)."""
    canvas = image.astype(np.float32) / 255
    for thing in things:
        if thing.mask is not None:
            canvas[thing.mask] = 0.55 * canvas[thing.mask] + 0.45 * np.array(_color(thing))
    axes.imshow(canvas)
    for thing in things:
        x0, y0, x1, y1 = thing.box
        axes.add_patch(
            Rectangle(
                (x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=1.4, edgecolor=_color(thing)
            )
        )
        label = names[thing.category] if thing.category < len(names) else str(thing.category)
        score = "" if math.isnan(thing.score) else f" {100 * thing.score:.0f}%"
        axes.text(
            x0,
            max(y0, 0),
            label + score,
            fontsize=7,
            color="white",
            va="bottom" if y0 > 0.06 * image.shape[0] else "top",
            clip_on=True,
            bbox={"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0},
        )


def _color(thing: _Thing) -> tuple[float, float, float]:
    return to_rgb(f"C{thing.category % 10}")
