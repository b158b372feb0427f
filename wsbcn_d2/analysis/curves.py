"""The curves of a run: losses, learning rate and evaluations."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["Curve", "plot_curves", "plot_runs", "read_metrics", "running_mean"]

Curve = tuple[list[int], list[float]]
# Okabe and Ito's, which every kind of colour vision tells apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":")
# Points that a curve of `plot_runs` keeps at least, after its mean over several.
_POINTS = 25
_TASKS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}


def read_metrics(
    path: str | os.PathLike[str], metrics: Sequence[str] = ("AP",)
) -> dict[str, Curve]:
    """Curves from a ``metrics.json``: iterations (from 1) and values, by name, without NaNs.

    Iterations that a resumed run repeated count once, as written last. A line cut off in the middle
    (a job that was killed) is skipped, and a file that is not there has no curves.

    Args:
        path: of the file.
        metrics: how the names of evaluations' metrics start.
    """
    points: dict[str, dict[int, float]] = {}
    file = Path(path)
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        iteration = record.pop("iteration")
        for name, value in record.items():
            points.setdefault(name, {})[iteration] = value
    curves = {}
    for name, values in points.items():
        # detectron2 counts steps from 0, but files the last evaluation under the number of steps.
        kept = sorted((i, v) for i, v in values.items() if math.isfinite(v))
        evaluated = "/" in name and name.rpartition("/")[2].startswith(tuple(metrics))
        offset = 0 if evaluated else 1
        if kept:
            curves[name] = ([i + offset for i, _ in kept], [v for _, v in kept])
    return curves


def plot_curves(
    metrics_json: str | os.PathLike[str],
    output: str | os.PathLike[str] | BinaryIO,
    metrics: Sequence[str] = ("AP", "AP50"),
) -> None:
    """Draw losses, learning rate and evaluations over the iterations.

    Args:
        metrics_json: as detectron2's ``JSONWriter`` writes it; it may be empty or not exist.
        output: the PNG to write, or a file to write it to.
        metrics: names of those to draw; the first with a solid line.
    """
    curves = read_metrics(metrics_json, metrics)
    figure = Figure(figsize=(10, 11), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rate, precision = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.2, 2.2])
    losses.set_prop_cycle(color=_COLORS[:-1])  # black is the total

    parts = sorted(name for name in curves if "loss" in name and name != "total_loss")
    for name in [*(["total_loss"] if "total_loss" in curves else []), *parts]:
        _draw_loss(losses, name, curves[name])
    losses.set_ylabel("loss")
    if any(value > 0 for name in parts for value in curves[name][1]):
        losses.set_yscale("log")
    if "lr" in curves:
        rate.plot(*curves["lr"], color="black", linewidth=1.5, label="learning rate")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rate.set_ylabel("learning rate")
    colors: dict[str, str] = {}
    for name in sorted(curves):
        dataset_task, _, metric = name.rpartition("/")
        if dataset_task and metric in metrics:
            dataset, _, task = dataset_task.rpartition("/")
            label = " ".join(filter(None, [dataset, _TASKS.get(task, task), metric]))
            iterations, values = curves[name]
            style = "-" if metric == metrics[0] else "--"
            color = colors.setdefault(task, _COLORS[len(colors) % len(_COLORS)])
            label = f"{label}: {values[-1]:.3g}"
            precision.plot(iterations, values, style, marker="o", color=color, label=label)
    precision.set_ylabel(", ".join(metrics))
    precision.set_ylim(bottom=0)
    precision.set_xlabel("iteration")
    precision.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes, empty in (
        (losses, "no losses yet"),
        (rate, "no learning rate yet"),
        (precision, "no evaluation yet"),
    ):
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.set_yticks([])
            axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", color="gray")
        elif axes is not rate:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(output, dpi=110)


def plot_runs(runs: Mapping[str, Mapping[str, Curve]], metrics: Sequence[str]) -> Figure:
    """Curves of several runs over one another, a panel for each metric.

    Args:
        runs: from `read_metrics`, by name.
        metrics: those to draw; losses as running means.
    """
    figure = Figure(figsize=(9, 3.4 * len(metrics) + 0.4 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, metrics, strict=True):
        for number, (run, curves) in enumerate(runs.items()):
            iterations, values = curves.get(name, ([], []))
            window = max(1, len(values) // _POINTS) if "loss" in name else 1
            axes.plot(
                *(iterations, running_mean(values, window)),
                _STYLES[number // len(_COLORS) % len(_STYLES)],
                color=_COLORS[number % len(_COLORS)],
                marker="o" if len(values) < _POINTS else None,
                label=run if axes is panels[0] else None,
            )
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("iteration")
    figure.legend(loc="outside upper center")
    return figure


def _draw_loss(axes: Axes, name: str, curve: Curve) -> None:
    """The raw values pale, and over them their running mean."""
    iterations, values = curve
    total = name == "total_loss"
    window = max(1, len(values) // 25)
    (line,) = axes.plot(
        iterations,
        running_mean(values, window),
        color="black" if total else None,
        linewidth=2.2 if total else 1.3,
        marker="o" if len(values) == 1 else None,
        label=name.removeprefix("loss_") + (f" (mean of {window})" if total and window > 1 else ""),
    )
    if window > 1:
        axes.plot(iterations, values, color=line.get_color(), alpha=0.2, linewidth=0.8)


def running_mean(values: list[float], window: int) -> np.ndarray:
    """Mean of the last ``window`` values, of those there are at the start.

    Args:
        values: one after another.
        window: how many, 1 or more.
    """
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
