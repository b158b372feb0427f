"""A resumed run whose config has changed: what takes effect, and what is said of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.engine.tiny_training import prepare, training

LR, NEW_LR = 0.02, 0.005
# The factor of detectron2's 1x schedule in the last iteration of 3 and of 6.
LAST = 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    prepare(folder)
    return folder


def rates(folder: Path, output: str) -> dict[int, float]:
    lines = (folder / output / "metrics.json").read_text().splitlines()
    return {row["iteration"]: row["lr"] for row in map(json.loads, lines)}


@pytest.mark.parametrize("takes_new", [False, True])
def test_a_resume_with_another_learning_rate_says_which_is_used(
    folder: Path, caplog: pytest.LogCaptureFixture, takes_new: bool
) -> None:
    output = f"new {takes_new}"
    fixed = ["lr_multiplier.warmup_length=0", "train.log_period=1"]
    training(folder, output, *fixed, f"optimizer.lr={LR}", "train.max_iter=3")
    assert rates(folder, output)[2] == pytest.approx(LAST * LR)
    caplog.set_level(logging.WARNING)
    flag = f"train.resume.new_hyperparameters={takes_new}"
    training(folder, output, *fixed, f"optimizer.lr={NEW_LR}", flag, resume=True)
    used = "the new one is used" if takes_new else "the checkpoint's is used"
    assert f"optimizer.lr: {LR} -> {NEW_LR} ({used})" in caplog.text
    assert "train.max_iter: 3 -> 6 (the new one is used)" in caplog.text
    assert rates(folder, output)[5] == pytest.approx(LAST * (NEW_LR if takes_new else LR))


def test_an_unchanged_config_is_not_told_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    training(folder, "same")
    caplog.set_level(logging.WARNING)
    training(folder, "same", resume=True)
    assert "differs from the one" not in caplog.text


@pytest.mark.parametrize(
    ("norm", "override"), [("SN", "train.log_period=1"), ("GN", "model.roi_heads.num_classes=90")]
)
def test_another_model_that_was_asked_for_trains_on_with_what_fits(
    folder: Path, caplog: pytest.LogCaptureFixture, norm: str, override: str
) -> None:
    output = f"other {norm}"
    training(folder, output, "train.max_iter=2")
    caplog.set_level(logging.WARNING)
    allow = "train.resume.other_model=True"
    end = training(folder, output, "train.max_iter=3", allow, override, norm=norm, resume=True)
    assert end["iteration"] == 2
    assert "no optimizer state (momentum) that fits" in caplog.text
    state = end["trainer"]["optimizer"]["state"]
    assert all("momentum_buffer" in values for values in state.values())
