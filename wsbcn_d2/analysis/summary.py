"""The summary at the end of a run: pictures, a table of results, and a list of files."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate
from torch import nn

if TYPE_CHECKING:
    from ..config import RunConfig

__all__ = ["results_table", "summarize", "task_metrics"]

logger = logging.getLogger(__name__)

Row = tuple[str, dict[str, float]]


def summarize(
    config: RunConfig, model: nn.Module, results: Mapping[str, Any], checkpoint: str
) -> None:
    """Draw the pictures, then log the table of results and the files. Called on rank 0.

    Args:
        config: of the run.
        model: the evaluated one.
        results: as `wsbcn_d2.engine.evaluate` returns them.
        checkpoint: path of the model's checkpoint.
    """
    # Imported here: matplotlib takes a second, which nothing else waits for.
    from .curves import plot_curves

    folder = Path(config.options.output_dir)
    rows = task_metrics(results)
    names = config.task.metrics or list(dict.fromkeys(name for _, row in rows for name in row))
    # A picture that fails must not fail a training that took days.
    try:
        if (folder / "metrics.json").exists():
            plot_curves(folder / "metrics.json", folder / "curves.png", names[:2])
    except Exception:
        logger.exception("curves.png was not drawn:")
    try:
        config.task.plot_predictions(model, config, str(folder / "predictions.png"))
    except Exception:
        logger.exception("predictions.png was not drawn:")
    logger.info("%s\n%s", results_table(rows, names), _list_files(folder, checkpoint))


def task_metrics(results: Mapping[str, Any]) -> list[Row]:
    """The name of each task (of each dataset, with several) and its metrics."""
    rows: list[Row] = []
    for name, value in results.items():
        nested = any(isinstance(metrics, dict) for metrics in value.values())
        tasks: dict[str, Any] = value if nested else {"": value}
        rows += [(f"{name} {task}".strip(), metrics) for task, metrics in tasks.items()]
    return rows


def results_table(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """The results as text.

    Args:
        rows: from `task_metrics`.
        metrics: the columns.
    """
    if not rows:
        return "No evaluation results: the config has no evaluator."
    cells = [[title, *(row.get(name, math.nan) for name in metrics)] for title, row in rows]
    table = tabulate(cells, headers=["", *metrics], floatfmt=".2f", tablefmt="simple")
    return f"Final evaluation:\n{table}"


def _list_files(folder: Path, checkpoint: str) -> str:
    events = sorted(folder.glob("events.out.tfevents.*"))
    files = {
        "checkpoint": Path(checkpoint) if checkpoint else None,
        "resolved config": folder / "config.yaml",
        "log": folder / "log.txt",
        "metrics": folder / "metrics.json",
        "ratios": folder / "ratios.json",
        "curves": folder / "curves.png",
        "predictions": folder / "predictions.png",
        "detections": folder / "inference",
    }
    lines = [f"  {name + ':':<16} {path}" for name, path in files.items() if path and path.exists()]
    if events:
        lines.append(f"  {'TensorBoard:':<16} tensorboard --logdir {folder}")
    return "\n".join(["Everything is in " + str(folder.absolute()), *lines])
