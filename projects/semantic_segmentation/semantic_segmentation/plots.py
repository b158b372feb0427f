"""The picture of a finished run: images, their label maps, and the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import inference_context
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import nn

from wsbcn_d2.data.label_maps import read_label_map

__all__ = ["plot_predictions"]

_MAX_LEGEND = 24


def plot_predictions(
    model: nn.Module,
    dataset_name: str,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    output: str,
    num_images: int = 8,
) -> None:
    """Draw images spread over a dataset, each beside its label map and the predicted one.

    Args:
        model: a `Segmentor`.
        dataset_name: registered with detectron2.
        mapper: from a record to an input of the model.
        output: the PNG to write.
        num_images: how many.
    """
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    count = min(num_images, len(records))
    rows = -(-count // 2)
    figure = Figure(figsize=(13, 2.3 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{dataset_name}: image, truth, prediction (share of pixels that agree)")
    grid = figure.subplots(rows, 6, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    shown: set[int] = set()
    with inference_context(model), torch.no_grad():
        for i in range(count):
            record = records[i * len(records) // count]
            image = read_image(record["file_name"], "RGB")
            truth = read_label_map(record["sem_seg_file_name"]).astype(np.int64)
            scores = model([mapper(dict(record))])[0]["sem_seg"]
            found = scores.argmax(dim=0).cpu().numpy()
            counted = truth != metadata.ignore_label
            share = (found == truth)[counted].mean() if counted.any() else float("nan")
            cells = grid[i // 2][3 * (i % 2) :][:3]
            cells[0].imshow(image)
            cells[1].imshow(_colored(image, truth, metadata.ignore_label))
            cells[2].imshow(_colored(image, found, metadata.ignore_label))
            cells[2].set_title(f"{100 * share:.1f}%", fontsize=9)
            shown |= set(np.unique(truth[counted])) | set(np.unique(found))
    classes = metadata.stuff_classes
    if len(shown) <= _MAX_LEGEND:
        handles = [Patch(color=_color(k), label=classes[k]) for k in sorted(shown)]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=12,
            frameon=False,
            fontsize=9,
        )
    figure.savefig(output, dpi=100)


def _color(label: int) -> tuple[float, float, float]:
    """Of the first class, which is the background in most sets, a light grey."""
    if label == 0:
        return 0.85, 0.85, 0.85
    red, green, blue, _ = colormaps["tab20"]((label - 1) * 2 % 19)
    return red, green, blue


def _colored(image: np.ndarray, labels: np.ndarray, ignored: int) -> np.ndarray:
    """The labels' colours over a pale image; what does not count is black."""
    grey = image.mean(axis=2, keepdims=True) / 255
    colors = np.zeros((*labels.shape, 3))
    for label in np.unique(labels):
        if label != ignored:
            colors[labels == label] = _color(int(label))
    return np.clip(0.8 * colors + 0.2 * grey * (labels != ignored)[..., None], 0, 1)
