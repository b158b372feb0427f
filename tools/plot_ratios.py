"""Pictures of what SN, SyncSN or SSN layers learned: which statistic each layer uses, and when.

    $ python tools/plot_ratios.py output/quick/mask_rcnn_r18_fpn_syncsn
    $ python tools/plot_ratios.py output/sn output/syncsn --output output/sn_and_syncsn
    $ python tools/plot_ratios.py output/seeds/syncsn/* --seeds --csv
    $ python tools/plot_ratios.py output/sn/model_0000659.pth output/sn/model_final.pth

Of one run: bars of each layer and each part, curves over the training, hard ratios at snapshots.
Of several: bars side by side; with --seeds, their spread. Of a checkpoint, only its bars.
docs/ratios.md shows them.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsbcn_d2.analysis.run_ratios import RunRatios

__all__ = ["main", "rows"]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures of the runs on the command line, and print where they are."""
    args = _parser().parse_args(argv)
    from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2
    from wsbcn_d2.analysis.ratio_figures import ratio_figures
    from wsbcn_d2.analysis.run_folder import distinct_names
    from wsbcn_d2.analysis.run_ratios import load_run_ratios
    from wsbcn_d2.errors import UserError, exit_with_message

    with exit_with_message("plot_ratios"):
        if args.names and len(args.names) != len(args.runs):
            raise UserError(f"--names has {len(args.names)} names for {len(args.runs)} runs")
        if args.seeds and len(args.runs) < 2:
            raise UserError("--seeds needs two runs or more")
        if any(not 0 < t <= 1 for t in args.snapshots):
            raise UserError("--snapshots takes shares of the training, above 0 and at most 1")
        names = args.names or distinct_names(args.runs)
        runs = [load_run_ratios(run, name) for run, name in zip(args.runs, names, strict=True)]
        output = args.output or (
            args.runs[0] / "ratios" if args.runs[0].is_dir() and len(runs) == 1 else Path("ratios")
        )
        output.mkdir(parents=True, exist_ok=True)
        for name, figure in ratio_figures(runs, args.seeds, args.snapshots):
            for path in (output / f"{name}.png", output / f"{name}.svg"):
                figure.savefig(path, dpi=200)
            print(output / f"{name}.png")
        if args.csv:
            path = output / "ratios.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows(runs))
            print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="output folders, or checkpoints")
    parser.add_argument("--output", type=Path, help="folder (a run's ratios/, else ratios/)")
    parser.add_argument("--names", nargs="+", help="what to call the runs (their folders)")
    parser.add_argument("--seeds", action="store_true", help="the runs differ in their seed only")
    parser.add_argument(
        "--snapshots",
        nargs="+",
        type=float,
        default=[0.3, 0.6, 0.9],
        help="shares of the training (the paper's: 0.3 0.6 0.9)",
    )
    parser.add_argument("--csv", action="store_true", help="also all numbers, in ratios.csv")
    return parser


def rows(runs: Sequence[RunRatios]) -> Iterator[list[object]]:
    """A header, then a row for each ratio of each record."""
    yield [
        *("run", "iteration", "layer", "label", "part", "receptive_field_pixels"),
        *("group", "kind", "statistic", "ratio"),
    ]
    for run in runs:
        for name, layer in run.layers.items():
            ratios = run.ratios[name]
            where = [name, layer.label, layer.part, layer.receptive_field]
            for t, iteration in enumerate(run.iterations.tolist()):
                for kind, values in (("mean", ratios.mean), ("var", ratios.var)):
                    for group, each in enumerate(values[t]):
                        for statistic, ratio in zip(ratios.statistics, each.tolist(), strict=True):
                            row = [group, kind, statistic, round(ratio, 6)]
                            yield [run.name, iteration, *where, *row]


if __name__ == "__main__":
    sys.exit(main())
