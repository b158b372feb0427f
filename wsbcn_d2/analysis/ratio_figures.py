"""All pictures of the ratios of one or more runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from .ratio_bars import plot_layers, plot_parts, plot_spread
from .ratio_curves import plot_curves, plot_snapshots
from .run_ratios import RunRatios

__all__ = ["figures_over_time", "ratio_figures"]

# Runs side by side, each with a column of bars, in 8 inches.
_MOST_COLUMNS = 4


def ratio_figures(
    runs: Sequence[RunRatios], seeds: bool = False, snapshots: Sequence[float] = (0.3, 0.6, 0.9)
) -> Iterator[tuple[str, Figure]]:
    """The pictures of one or more runs, with the names of their files.

    Args:
        runs: from `load_run_ratios`.
        seeds: whether they are repetitions, whose spread is drawn in the place of bars.
        snapshots: of one run with a record, shares of its training.
    """
    if seeds:
        yield "spread", plot_spread(runs)
    elif len(runs) == 1:
        yield "layers", plot_layers(runs)
    elif len(runs) <= _MOST_COLUMNS and set.intersection(*(set(run.layers) for run in runs)):
        for kind in ("mean", "var"):
            yield f"layers_{kind}", plot_layers(runs, kind)
    yield "parts", plot_parts(runs)
    if len(runs) == 1:
        yield from figures_over_time(runs[0], snapshots)


def figures_over_time(
    run: RunRatios, snapshots: Sequence[float] = (0.3, 0.6, 0.9)
) -> Iterator[tuple[str, Figure]]:
    """The pictures of a run's training; none of a checkpoint.

    Args:
        run: from `load_run_ratios`.
        snapshots: shares of its training.
    """
    if len(run.iterations) > 1:
        yield "curves", plot_curves(run)
        yield "snapshots", plot_snapshots(run, snapshots)
