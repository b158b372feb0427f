"""tools/seed_spread.py: the last evaluation counts, and a run without one is named."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tests.test_setup import load_tool

tool = load_tool("seed_spread")


def write_run(folder: Path, *box_aps: float) -> None:
    folder.mkdir(parents=True)
    rows: list[dict[str, float]] = [{"iteration": 1.0, "total_loss": 2.0}]
    for ap in box_aps:
        rows += [{metric: ap + k for k, metric in enumerate(tool.METRICS)}, {"lr": 0.1}]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))


def test_mean_and_spread_of_the_last_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finals = [50.0, 53.0, 51.5]
    for seed, ap in enumerate(finals):
        write_run(tmp_path / "gn" / str(seed), 10.0, ap)
    assert tool.main([str(tmp_path / "gn")]) == 0
    spread = statistics.stdev(finals)
    expected = [f"{statistics.mean(finals) + k:.1f} ± {spread:.1f}" for k in range(4)]
    assert f"| gn | {' | '.join(expected)} | 3 |" in capsys.readouterr().out


def test_a_run_without_an_evaluation_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "gn" / "0")
    with pytest.raises(SystemExit, match=r"gn/0: no finished evaluation"):
        tool.main([str(tmp_path / "gn")])
