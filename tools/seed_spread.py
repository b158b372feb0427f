"""Mean and spread over seeds: a Markdown row a recipe, from finished runs.

    $ for seed in 0 1 2; do
          make train CONFIG=configs/quick/mask_rcnn_r18_fpn_gn.py ARGS=train.seed=$seed \\
              OUTPUT=output/seeds/mask_rcnn_r18_fpn_gn/$seed
      done
    $ python tools/seed_spread.py output/seeds/*

A folder holds the runs of one recipe, one folder each. The spread is the standard deviation of a
single run (divisor n - 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["METRICS", "final_metrics", "main", "row"]

METRICS = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")


def final_metrics(run: Path) -> dict[str, float]:
    """The last evaluation in a run's metrics.json.

    Raises:
        ValueError: the run has none.
    """
    file = run / "metrics.json"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = [found for found in map(json.loads, lines) if METRICS[0] in found]
    if not rows:
        raise ValueError(f"{run}: no finished evaluation in metrics.json")
    return {metric: rows[-1][metric] for metric in METRICS}


def row(recipe: Path) -> str:
    """The Markdown row of one recipe's runs.

    Raises:
        ValueError: a run has no evaluation, or there is no run.
    """
    runs = [final_metrics(run) for run in sorted(recipe.iterdir()) if run.is_dir()]
    if not runs:
        raise ValueError(f"{recipe}: no run in it")
    cells = [recipe.name]
    for metric in METRICS:
        values = [run[metric] for run in runs]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    return f"| {' | '.join([*cells, str(len(runs))])} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of the recipes named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", type=Path, help="folders of runs")
    args = parser.parse_args(argv)
    print("| recipe | box AP | box AP50 | mask AP | mask AP50 | seeds |\n|---|---|---|---|---|---|")
    try:
        for recipe in args.recipes:
            print(row(recipe))
    except (OSError, ValueError) as error:
        sys.exit(f"seed_spread: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
