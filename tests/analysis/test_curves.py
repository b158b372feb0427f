"""The curves: always a valid PNG, whatever there is to draw."""

import json

import numpy as np
import pytest
from PIL import Image

from wsbcn_d2.analysis.curves import plot_curves, read_metrics

TRAINING = {"total_loss": 2.0, "loss_cls": 1.5, "loss_mask": 0.5, "lr": 0.01, "time": 0.1}


def lines(*records):
    return "\n".join(json.dumps(record) for record in records)


CASES = {
    "missing": None,
    "empty": "",
    "one step": lines({"iteration": 0, **TRAINING}),
    "no AP yet": lines(*({"iteration": i, **TRAINING} for i in range(60))),
    "AP not a number": lines({"iteration": 3, **TRAINING}, {"iteration": 4, "bbox/AP": np.nan}),
    "negative loss": lines({"iteration": 3, "loss_a": -1.0, "total_loss": -1.0}),
    "two datasets": lines({"iteration": 4, "a/bbox/AP": 1.0, "b/segm/AP50": 2.0}),
    "cut off": lines({"iteration": 3, **TRAINING}) + '\n{"iteration": 4, "lo',
}


@pytest.mark.parametrize("case", CASES)
def test_curves_are_drawn_from_any_metrics(case, tmp_path):
    metrics = tmp_path / "metrics.json"
    if CASES[case] is not None:
        metrics.write_text(CASES[case])
    plot_curves(metrics, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 800


def test_metrics_of_a_resumed_run_count_once(tmp_path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text(
        lines(
            {"iteration": 1, "lr": 0.1},
            {"iteration": 3, "lr": 0.2},
            {"iteration": 1, "lr": 0.3},
            {"iteration": 2, "bbox/AP": float("nan")},
        )
    )
    assert read_metrics(metrics) == {"lr": ([2, 4], [0.3, 0.2])}
