"""The picture of a finished run: images, their labels, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.evaluation import inference_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

__all__ = ["plot_predictions"]

_COLUMNS = 8


def plot_predictions(
    model: nn.Module,
    records: list[dict[str, Any]],
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    output: str,
    *,
    num_images: int = 8,
) -> None:
    """Draw images with label and prediction: some of all, and some that are wrong.

    Args:
        model: an `ImageClassifier`.
        records: of the test set; of a large one, about 1,000 are looked at.
        mapper: from a record to an input of the model.
        output: the PNG to write.
        num_images: of either kind, at most; spread over all there are.
    """
    step = max(1, len(records) // 1000)
    inputs = [mapper(record) for record in records[::step]]
    with inference_context(model), torch.no_grad():
        scores = torch.cat(
            [
                torch.stack([y["scores"] for y in model(inputs[i : i + 64])]).cpu()
                for i in range(0, len(inputs), 64)
            ]
        )
    best, classes = scores.max(dim=1)
    wrong = [i for i, x in enumerate(inputs) if int(classes[i]) != x["label"]]
    spread, missed = (
        [chosen[i * len(chosen) // num_images] for i in range(num_images)]
        if len(chosen) > num_images
        else chosen
        for chosen in (list(range(len(inputs))), wrong)
    )
    rows = [chosen[i : i + _COLUMNS] for chosen in (spread, missed)
            for i in range(0, len(chosen), _COLUMNS)]  # fmt: skip
    figure = Figure(figsize=(1.5 * _COLUMNS, 1.9 * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{len(wrong)} of {len(inputs)} wrong: label → prediction (score); first some of all, then "
        "wrong ones"
    )
    grid = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for cells, row in zip(grid, rows, strict=True):
        for axes, i in zip(cells, row, strict=False):
            axes.imshow(inputs[i]["image"].permute(1, 2, 0).numpy())
            label, found = inputs[i]["label"], int(classes[i])
            axes.set_title(
                f"{label} → {found} ({100 * best[i]:.0f}%)",
                fontsize=9,
                color="black" if label == found else "firebrick",
            )
    figure.savefig(output, dpi=110)
