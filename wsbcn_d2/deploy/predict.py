"""A detector on files: images, folders of them and videos, whole or in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.layers import batched_nms
from pycocotools import mask as mask_api
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ..data.formats.labels import IMAGE_SUFFIXES
from ..errors import UserError
from .detector import Detector

__all__ = ["VIDEO_SUFFIXES", "Picture", "draw", "find_pictures", "predict", "tile_corners"]

# Pixels of a picture's longer side, at most: 20,000 take minutes and gigabytes to draw on.
_LARGEST_PICTURE = 4096
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")
_COLORS = (
    *((230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180)),
    *((70, 200, 200), (240, 50, 230), (128, 128, 0), (0, 0, 128), (170, 110, 40)),
)


@dataclass(frozen=True)
class Picture:
    """An image file, or a frame of a video.

    Attributes:
        name: of what is written for it, without suffix; a path where folders were searched.
        source: the file.
        read: gives the image ``(H, W, 3)``; raises `UserError` where it cannot.
    """

    name: str
    source: str
    read: Callable[[], np.ndarray]


def find_pictures(detector: Detector, path: Path) -> Iterator[Picture]:
    """The image, the images of a folder (searched to its depth), or the frames of a video.

    Args:
        detector: which reads them.
        path: a folder's other files are left out.

    Raises:
        UserError: it is not there, or a video cannot be read on, after its frames.
    """
    if path.is_dir():
        for file in sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES):
            yield _image(detector, file, str(file.relative_to(path).with_suffix("")))
    elif not path.exists():
        raise UserError(f"{path} is not there")
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        yield from _frames(detector, path)
    else:
        yield _image(detector, path, path.stem)


def _image(detector: Detector, file: Path, name: str) -> Picture:
    return Picture(name, str(file), lambda: detector.read(str(file)))


def _frames(detector: Detector, path: Path) -> Iterator[Picture]:
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: reading a video needs PyAV: pip install av") from None
    number = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                pixels = {"RGB": "rgb24", "BGR": "bgr24"}[detector.image_format]
                image = frame.to_ndarray(format=pixels)
                yield Picture(f"{path.stem}_{number:06d}", str(path), partial(np.asarray, image))
                number += 1
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{path} cannot be read on after {number} frames: {error}") from error


def tile_corners(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along one side: the fewest of equal distance that overlap enough.

    Args:
        length: of the side, in pixels.
        tile: of a tile's side; 0 for one tile.
        overlap: the least share of a tile that the next one covers, below 1.
    """
    if not tile or length <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = -(-(length - tile) // step) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def predict(
    detector: Detector,
    image: np.ndarray,
    *,
    threshold: float = 0.5,
    tile: int = 0,
    overlap: float = 0.2,
    nms: float = 0.5,
) -> list[dict[str, Any]]:
    """The objects in an image, in the format of COCO's results but without ``image_id``.

    Args:
        detector: from `load_detector`.
        image: ``(H, W, 3)`` in the detector's ``image_format``.
        threshold: objects of a lower score are left out.
        tile: the side of the squares that a larger image is cut into, in pixels; 0: not cut.
        overlap: of neighbouring tiles, as a share of a tile: more than the largest object.
        nms: of the same class, boxes in several tiles whose IoU is larger are one object.

    Returns:
        ``category_id`` (the class's number, from 0), ``bbox`` ``[x, y, width, height]``, ``score``,
        and with a mask head ``segmentation`` as run lengths; the best first.
    """
    height, width = image.shape[:2]
    found: list[dict[str, Any]] = []
    rows, columns = (tile_corners(side, tile, overlap) for side in (height, width))
    for y in rows:
        for x in columns:
            part = image[y : y + tile, x : x + tile] if tile else image
            found += _objects(detector(part), (x, y), (height, width), threshold)
    found.sort(key=lambda thing: -thing["score"])
    if len(rows) * len(columns) > 1 and found:
        boxes = torch.tensor([thing["bbox"] for thing in found])
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([thing["score"] for thing in found])
        numbers = torch.tensor([thing["category_id"] for thing in found])
        found = [found[i] for i in batched_nms(boxes, scores, numbers, nms).tolist()]
    return found


def _objects(
    instances: Any, corner: tuple[int, int], size: tuple[int, int], threshold: float
) -> list[dict[str, Any]]:
    instances = instances[instances.scores >= threshold]
    boxes = instances.pred_boxes.tensor.tolist()
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else [None] * len(boxes)
    found = []
    for box, number, score, mask in zip(
        boxes, instances.pred_classes.tolist(), instances.scores.tolist(), masks, strict=True
    ):
        x0, y0, x1, y1 = box
        thing = {
            "category_id": number,
            "bbox": [x0 + corner[0], y0 + corner[1], x1 - x0, y1 - y0],
            "score": score,
        }
        if mask is not None:
            thing["segmentation"] = _encode(mask, corner, size)
        found.append(thing)
    return found


def _encode(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths of a tile's mask in its image, which may be too large for a bitmap of it."""
    height, width = size
    columns, rows = np.nonzero(mask.T)
    places = (columns + corner[0]) * height + rows + corner[1]
    breaks = np.flatnonzero(np.diff(places) != 1)
    starts = places[np.concatenate([[0], breaks + 1])] if len(places) else []
    ends = places[np.concatenate([breaks, [-1]])] + 1 if len(places) else []
    edges = [edge for run in zip(starts, ends, strict=True) for edge in run]
    counts = np.diff([0, *edges, height * width]).tolist()
    runs = mask_api.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": runs["counts"].decode()}


def draw(
    image: np.ndarray, objects: Sequence[dict[str, Any]], classes: Sequence[str]
) -> np.ndarray:
    """The image (RGB) with boxes, class names, scores and masks, coloured by class.

    An image of more than 4096 pixels a side is drawn smaller, every second or third of its pixels.

    Args:
        image: ``(H, W, 3)`` uint8 in RGB.
        objects: from `predict`; the truth has no score.
        classes: names by number; numbers are written for those that are missing.
    """
    step = -(-max(image.shape[:2]) // _LARGEST_PICTURE)
    image = np.ascontiguousarray(image[::step, ::step])
    if not objects:
        return image
    canvas = torch.from_numpy(image.transpose(2, 0, 1).copy())
    numbers = [thing["category_id"] for thing in objects]
    colors = [_COLORS[number % len(_COLORS)] for number in numbers]
    if "segmentation" in objects[0]:
        for thing, color in zip(objects, colors, strict=True):
            # Only where it is: a decoded mask is as large as the image.
            x, y, w, h = map(int, mask_api.toBbox(thing["segmentation"]))
            left, top = -(-x // step), -(-y // step)
            part = mask_api.decode(thing["segmentation"])[
                top * step : y + h : step, left * step : x + w : step
            ]
            if part.size:
                region = canvas[:, top : top + part.shape[0], left : left + part.shape[1]]
                mask = torch.from_numpy(part.astype(bool))
                region[:] = draw_segmentation_masks(region, mask, alpha=0.5, colors=color)
    boxes = torch.tensor([thing["bbox"] for thing in objects])
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes / step
    labels = [
        str(classes[number] if number < len(classes) else number)
        + (f" {100 * thing['score']:.0f}%" if "score" in thing else "")
        for number, thing in zip(numbers, objects, strict=True)
    ]
    width = max(1, round(max(image.shape) / 500))
    canvas = draw_bounding_boxes(
        canvas, boxes, labels, colors, width=width, label_colors="white", fill_labels=True
    )
    return canvas.permute(1, 2, 0).numpy()
