"""Draw the curves of several runs over one another, and print where they ended."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from wsbcn_d2.analysis.curves import plot_runs, read_metrics
from wsbcn_d2.errors import UserError, did_you_mean, exit_with_message

__all__ = ["main"]

EPILOG = """
examples:

  $ python tools/compare_runs.py output/quick/*
  $ python tools/compare_runs.py output/a output/b --metrics loss_cls bbox/AP50 --output ab.png
"""
_DEFAULT = ("total_loss", "bbox/AP", "segm/AP")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of trainings")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of metrics.json (default: those there are of " + ", ".join(_DEFAULT) + ")",
    )
    parser.add_argument("--output", default="runs.png", metavar="PNG", help="default: runs.png")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read, draw, print."""
    args = _parser().parse_args(argv)
    with exit_with_message("compare_runs.py"):
        runs = {}
        for run in args.runs:
            file = Path(run, "metrics.json")
            runs[run] = read_metrics(file)
            if not runs[run]:
                raise UserError(f"{file} is not there, or has no values yet")
        known = sorted({name for curves in runs.values() for name in curves})
        metrics = args.metrics or [name for name in _DEFAULT if name in known]
        for name in metrics:
            if name not in known:
                raise UserError(f"no run has {name!r}; {did_you_mean(name, known)}")
    figure = plot_runs(runs, metrics)
    figure.savefig(args.output, dpi=110)
    rows = [
        [run, *(curves[name][1][-1] if name in curves else None for name in metrics)]
        for run, curves in runs.items()
    ]
    print(tabulate(rows, headers=["last value", *metrics], floatfmt=".4g", missingval="–"))
    print(f"curves: {args.output}")


if __name__ == "__main__":
    main()
