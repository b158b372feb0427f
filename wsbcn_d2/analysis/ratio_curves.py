"""Pictures of the ratios over the training: curves, and hard ratios at snapshots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .ratio_bars import (
    COLORS,
    KINDS,
    label_layers,
    new_figure,
    percent_limits,
    separate_parts,
    statistics_of,
)
from .run_ratios import RunRatios

__all__ = ["divergence", "plot_curves", "plot_snapshots"]

_FONT = 8.5
# Each leaves something of those before it to be seen.
_STYLES = {"in": "-", "ln": (0, (5, 2.5)), "bn": (0, (1.5, 3))}
# A ratio of 0 would make the divergence infinite.
_LEAST = 1e-4


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p||q) + KL(q||p) in nats, of distributions over the last axis.

    Ratios below 1e-4 count as 1e-4; the largest value, of two different one-hot ratios, is 18.4.
    """
    p, q = np.maximum(p, _LEAST), np.maximum(q, _LEAST)
    result: np.ndarray = ((p - q) * np.log(p / q)).sum(-1)
    return result


def plot_curves(run: RunRatios) -> Figure:
    """The ratios over the training, by part, and how far mean and var ratios are apart.

    arXiv:1907.10473, figures 7, 10, 13. Thick lines are means over the layers of a part, thin ones
    single layers.

    Args:
        run: with a record over its training.
    """
    parts = run.parts()
    title = f"Ratios of {run.name} over the training: thick, mean of the part; thin, each layer"
    figure = new_figure(1.0 * len(parts) + 0.4, title, statistics_of([run]))
    axes = figure.subplots(len(parts), 3, sharex=True, squeeze=False)
    for ax in axes[:, 2]:
        ax.sharey(axes[0, 2])
    found = np.concatenate([getattr(r, k).ravel() for r in run.ratios.values() for k in KINDS])
    limits = percent_limits(100 * found)  # the same everywhere
    for row, (part, names) in zip(axes, parts.items(), strict=True):
        ratios = [run.ratios[name] for name in names]
        for ax, kind in zip(row, KINDS, strict=False):
            for statistic in statistics_of([run]):
                lines = [
                    100 * getattr(r, kind).mean(1)[:, r.statistics.index(statistic)]
                    for r in ratios
                    if statistic in r.statistics
                ]
                for line in lines if len(lines) > 1 else []:
                    ax.plot(run.iterations, line, color=COLORS[statistic], linewidth=0.5, alpha=0.5)
                if lines:
                    # Hard ratios coincide, and lie on the frame.
                    ax.plot(
                        run.iterations, np.mean(lines, 0), color=COLORS[statistic],
                        linewidth=2, linestyle=_STYLES[statistic], clip_on=False, zorder=3,
                    )  # fmt: skip
            ax.set_ylim(limits)
        apart = [divergence(r.mean, r.var).mean(1) for r in ratios]
        for line in apart if len(apart) > 1 else []:
            row[2].plot(run.iterations, line, color="black", linewidth=0.5, alpha=0.4)
        row[2].plot(run.iterations, np.mean(apart, 0), color="black", linewidth=2)
        row[0].set_ylabel(f"{part} ({len(names)})", fontsize=_FONT)
        for ax in row:
            ax.tick_params(labelsize=_FONT - 0.5, length=2)
            ax.grid(alpha=0.3)
    axes[0, 2].set_ylim(bottom=0)
    headings = ("mean ratio (%)", "var ratio (%)", "mean-var divergence (nats)")
    for ax, heading in zip(axes[0], headings, strict=True):
        ax.set_title(heading, fontsize=_FONT)
    for ax in axes[-1]:
        ax.set_xlabel("iteration", fontsize=_FONT)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def plot_snapshots(run: RunRatios, times: Sequence[float] = (0.3, 0.6, 0.9)) -> Figure:
    """The largest ratio of each layer (its hard ratio) at some times; arXiv:1907.10473, figure 8.

    Below the columns stand the shares of layers whose mean and var choose different statistics,
    and of hard ratios that changed since the column before.

    Args:
        run: with a record over its training.
        times: shares of the training; the paper's are 30, 60 and 90 of 100 epochs.
    """
    records = [int(np.abs(run.iterations - t * run.iterations[-1]).argmin()) for t in times]
    statistics = statistics_of([run])
    hard = {}  # layers x times
    for kind in KINDS:
        largest = [getattr(r, kind)[records].mean(1).argmax(-1) for r in run.ratios.values()]
        hard[kind] = np.array(
            [
                [statistics.index(r.statistics[k]) for k in choices]
                for r, choices in zip(run.ratios.values(), largest, strict=True)
            ]
        )
    differ = 100 * (hard["mean"] != hard["var"]).mean(0)
    title = (
        f"The statistic that each layer of {run.name} uses most; mean and var differ in "
        + ", ".join(f"{d:.0f}" for d in differ)
        + " % of the layers"
    )
    figure = new_figure(0.19 * len(run.layers) + 0.7, title, statistics)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, kind in zip(axes, KINDS, strict=True):
        ax.pcolormesh(
            hard[kind],
            cmap=ListedColormap([COLORS[name] for name in statistics]),
            vmin=-0.5,
            vmax=len(statistics) - 0.5,
            edgecolors="white",
            linewidth=0.8,
        )
        changed = 100 * (np.diff(hard[kind], axis=1) != 0).mean(0)
        ticks = [f"{run.iterations[records[0]]:,}"]
        ticks += [
            f"{run.iterations[r]:,}\n{share:.0f} % changed"
            for r, share in zip(records[1:], changed, strict=True)
        ]
        ax.set_xticks(np.arange(len(records)) + 0.5, ticks, fontsize=_FONT)
        ax.set_xlabel("iteration", fontsize=_FONT)
        ax.set_title(kind, fontsize=_FONT)
        ax.tick_params(length=2)
        ax.set_ylim(len(run.layers), 0)
        separate_parts(ax, run, start=0.0)
    label_layers(axes[0], axes[1], run, start=0.5)
    return figure
