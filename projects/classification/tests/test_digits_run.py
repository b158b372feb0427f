"""The default recipe, shortened, and the project's script: resume, evaluation, a mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from projects.classification.classification import Classification
from tests.engine.tiny_run import environment
from tests.engine.tiny_training import assert_resumes_exactly
from wsbcn_d2.engine import argument_parser, load_config, read_config
from wsbcn_d2.engine import run as run_engine
from wsbcn_d2.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PROJECT = ROOT / "projects/classification"
CONFIG = PROJECT / "configs/digits/digits_resnet8_ws_gn.py"
SHORT = (
    "train.max_iter=12",
    "train.checkpointer.period=6",
    "train.images_per_gpu=4",
    "dataloader.train.total_batch_size=8",
    "model.mixup_alpha=0.2",
    "model.label_smoothing=0.1",
    "model.zero_gamma=True",
)


def arguments(output, *more):
    return ["--config-file", str(CONFIG), *more, f"train.output_dir={output}"]


def run(output, *flags):
    args = argument_parser().parse_args([*arguments(output, *flags), *SHORT])
    run_engine(args, Classification())


def run_script(output, *flags, overrides=()):
    command = [sys.executable, str(PROJECT / "train_net.py"), *arguments(output, *flags)]
    return subprocess.run(
        [*command, *overrides], env=environment(), capture_output=True, text=True, timeout=200
    )


def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    metrics = assert_resumes_exactly(run, tmp_path, "model_0000005.pth")

    # The script evaluates that checkpoint to the same accuracy.
    weights = f"train.init_checkpoint={tmp_path}/half/model_final.pth"
    done = run_script(tmp_path / "again", "--eval-only", overrides=[weights])
    assert done.returncode == 0, done.stderr
    both = [f"{metrics[f'classification/{name}']:.4f}" for name in ("top1", "top5")]
    assert ",".join(both) in done.stdout


def test_label_above_the_number_of_classes_is_one_message():
    cfg = load_config(str(CONFIG), ["model.backbone.num_classes=7"])
    task = Classification()
    message = "has label 7, but labels go from 0 to 6: model.backbone.num_classes is 7"
    with pytest.raises(UserError, match=message):
        task.check_data(read_config(cfg, task), ["train"])
