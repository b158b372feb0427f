"""Pictures of the ratios at one time: by layer, by part of the detector, and over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .run_ratios import RunRatios

__all__ = ["plot_layers", "plot_parts", "plot_spread", "shares"]

KINDS = ("mean", "var")
# Apart in lightness too (76, 61 and 22 of 100), for every kind of colour vision and in grey.
COLORS = {"in": "#F2B134", "ln": "#3A9BDC", "bn": "#12355B"}
NAMES = {"in": "IN (instance)", "ln": "LN (layer)", "bn": "BN (batch)"}
_WIDTH = 8.0  # inches; 800 pixels at 100 dpi, where a point is 1.4 of them
_FONT = 8.5


def shares(run: RunRatios, layer: str, kind: str, record: int = -1) -> dict[str, float]:
    """A layer's ratios by statistic, means over its channel groups.

    Args:
        run: whose.
        layer: the module's name.
        kind: ``"mean"`` or ``"var"``.
        record: which one of the run's.
    """
    ratios = run.ratios[layer]
    values = getattr(ratios, kind)[record].mean(0)
    return dict(zip(ratios.statistics, values.tolist(), strict=True))


def new_figure(height: float, title: str, statistics: Sequence[str]) -> Figure:
    """A figure of the common width, with a title and the legend of the statistics."""
    figure = Figure(figsize=(_WIDTH, height + 0.75), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=_FONT + 2.5)
    figure.legend(
        handles=[Patch(color=COLORS[name], label=NAMES[name]) for name in statistics],
        loc="outside lower center",
        ncols=len(statistics),
        fontsize=_FONT,
        frameon=False,
    )
    return figure


def percent_limits(values: np.ndarray) -> tuple[float, float]:
    """The tens around values in per cent, at least ten apart; NaN are left out."""
    low = min(90.0, 10 * np.floor(np.nanmin(values) / 10))
    return low, max(low + 10, 10 * np.ceil(np.nanmax(values) / 10))


def statistics_of(runs: Sequence[RunRatios]) -> list[str]:
    """Those that any layer of the runs has, in their order."""
    used = {name for run in runs for ratios in run.ratios.values() for name in ratios.statistics}
    return [name for name in NAMES if name in used]


def _stack(axes: Axes, rows: Sequence[dict[str, float]], height: float = 0.82) -> None:
    """A stacked horizontal bar for each row, the first on top."""
    left = np.zeros(len(rows))
    for name in NAMES:
        widths = np.array([100 * row.get(name, 0.0) for row in rows])
        axes.barh(
            range(len(rows)), widths, height, left, color=COLORS[name], edgecolor="white",
            linewidth=0.6,
        )  # fmt: skip
        left += widths
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(labelsize=_FONT, length=2)
    axes.set_xlabel("ratio (%)", fontsize=_FONT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def separate_parts(axes: Axes, run: RunRatios, start: float = -0.5) -> None:
    """Lines between the parts, of rows that are layers; ``start`` is the first one's edge."""
    position = start
    for names in list(run.parts().values())[:-1]:
        position += len(names)
        axes.axhline(position, color="0.6", linewidth=0.8)


def label_layers(first: Axes, last: Axes, run: RunRatios, start: float = 0.0) -> None:
    """Names left of ``first``, receptive fields right of ``last``; ``start`` is the first row."""
    layers = list(run.layers.values())
    places = [start + i for i in range(len(layers))]
    first.set_yticks(places, [layer.label for layer in layers], fontsize=_FONT)
    fields = [layer.receptive_field for layer in layers]
    if any(fields):
        right = last.secondary_yaxis("right")
        right.set_yticks(places, ["" if f is None else f"{f}" for f in fields])
        right.tick_params(labelsize=_FONT, length=0)
        right.spines["right"].set_visible(False)
        right.set_ylabel("receptive field (pixels)", fontsize=_FONT)


def _same_layers(runs: Sequence[RunRatios]) -> list[str]:
    """The layers of the first run that all have."""
    return [name for name in runs[0].layers if all(name in run.layers for run in runs)]


def plot_layers(runs: Sequence[RunRatios], kind: str | None = None) -> Figure:
    """Stacked bars of each layer's ratios at the end; arXiv:1907.10473, figures 5, 12.

    Args:
        runs: one, whose mean and var ratios stand side by side; or several with the same layers,
            of which ``kind`` does.
        kind: ``"mean"`` or ``"var"``; needed with several runs.
    """
    names = _same_layers(runs)
    first = RunRatios(
        runs[0].name,
        {name: runs[0].layers[name] for name in names},
        {name: runs[0].ratios[name] for name in names},
    )
    panels = [(run, k) for run in runs for k in ([kind] if kind else KINDS)]
    which = f"{kind} ratios" if kind else "ratios"
    title = f"{which} of each SN layer" + ("" if len(runs) > 1 else f" of {first.name}")
    figure = new_figure(0.19 * len(names) + 0.5, title[0].upper() + title[1:], statistics_of(runs))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for each, (run, k) in zip(axes, panels, strict=True):
        _stack(each, [shares(run, name, k) for name in names])
        heading = run.name if kind else k
        each.set_title(f"{heading}, {run.iterations[-1]:,} iterations", fontsize=_FONT)
        separate_parts(each, first)
    label_layers(axes[0], axes[-1], first)
    return figure


def plot_parts(runs: Sequence[RunRatios]) -> Figure:
    """Stacked bars of the mean over the layers of each part; arXiv:1907.10473, figures 1a, 4.

    Args:
        runs: those to compare, or one.
    """
    rows: list[tuple[str, RunRatios, list[str]]] = []
    parts = list(dict.fromkeys(part for run in runs for part in run.parts()))
    for part in ["all layers", *parts]:
        for run in runs:
            names = list(run.layers) if part == "all layers" else run.parts().get(part, [])
            if names:
                label = f"{part} ({len(names)})" if len(runs) == 1 else f"{part}: {run.name}"
                rows.append((label, run, names))
    title = "Mean ratios of the SN layers of each part"
    if len(runs) == 1:
        title += f" of {runs[0].name} (number of layers)"
    figure = new_figure(0.24 * len(rows) + 0.6, title, statistics_of(runs))
    axes = figure.subplots(1, 2, sharey=True)
    for each, kind in zip(axes, KINDS, strict=True):
        bars = []
        for _, run, names in rows:
            layers = [shares(run, name, kind) for name in names]
            keys = statistics_of([run])
            bars.append({k: sum(row.get(k, 0.0) for row in layers) / len(layers) for k in keys})
        _stack(each, bars)
        each.set_title(kind, fontsize=_FONT)
        for i in range(1, len(rows)):
            if rows[i][0].split(":")[0] != rows[i - 1][0].split(":")[0] and (
                i == 1 or len(runs) > 1
            ):
                each.axhline(i - 0.5, color="0.6", linewidth=0.8)
    axes[0].set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=_FONT)
    return figure


def plot_spread(runs: Sequence[RunRatios]) -> Figure:
    """Each layer's ratios over runs that differ in their seed: mean, least and most.

    arXiv:1907.10473, Sec. 4.1.3: "all trained models share similar importance weights". The title
    compares the standard deviation over the seeds with that over the layers.

    Args:
        runs: two or more with the same layers.
    """
    names, statistics = _same_layers(runs), statistics_of(runs)
    values = {
        kind: np.array(
            [
                [[100 * shares(run, n, kind).get(s, np.nan) for s in statistics] for n in names]
                for run in runs
            ]
        )
        for kind in KINDS
    }  # runs x layers x statistics
    both = np.stack(list(values.values()), 1)
    seeds, layers = np.nanmean(both.std(0, ddof=1)), np.nanmean(np.nanstd(both.mean(0), 1, ddof=1))
    title = (
        f"Ratios over {len(runs)} runs, in points: standard deviation {seeds:.1f} over runs, "
        f"{layers:.1f} over layers"
    )
    figure = new_figure(0.24 * len(names) + 0.5, title, statistics)
    axes = figure.subplots(1, 2, sharey=True)
    limits = percent_limits(both)
    for each, kind in zip(axes, KINDS, strict=True):
        for j, name in enumerate(statistics):
            found = values[kind][:, :, j]
            places = np.arange(len(names)) + 0.24 * (j - (len(statistics) - 1) / 2)
            mean, least, most = found.mean(0), found.min(0), found.max(0)
            each.errorbar(
                mean, places, xerr=[mean - least, most - mean], fmt="o", markersize=3.5,
                color=COLORS[name], elinewidth=1.6,
            )  # fmt: skip
        each.set_xlim(limits)
        each.set_ylim(len(names) - 0.5, -0.5)
        each.set_title(f"{kind}: mean, least and most", fontsize=_FONT)
        each.set_xlabel("ratio (%)", fontsize=_FONT)
        each.tick_params(labelsize=_FONT, length=2)
        each.grid(axis="x", alpha=0.3)
        for i in range(1, len(names)):
            each.axhline(i - 0.5, color="0.9", linewidth=0.6)
    label_layers(axes[0], axes[-1], runs[0])
    return figure
