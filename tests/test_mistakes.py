"""Mistakes in a command line or config end with one message, before any process is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsbcn_d2.engine import argument_parser, run
from wsbcn_d2.errors import exit_with_message

ROOT = Path(__file__).resolve().parents[1]
QUICK = "quick/mask_rcnn_r18_fpn_ws_gn"


def message(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What train_net.py ends with; nothing may have been printed before."""
    with pytest.raises(SystemExit) as stopped, exit_with_message("train_net.py"):
        run(argument_parser().parse_args(list(arguments)))
    text = stopped.value.code
    assert isinstance(text, str)  # printed, and status 1
    assert capfd.readouterr().out == ""
    assert len(text.splitlines()) <= 5
    return text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model.backbone.bottomup.freeze_at=2"], "did you mean model.backbone.bottom_up?"),
        (["--num-gpus", "0"], "--num-gpus is 0, but must be an integer of at least 1"),
        (["--machine-rank", "1"], "--machine-rank is 1, but must be below --num-machines (1)"),
        (["train.output_dir=/proc/x"], "train.output_dir: the output folder /proc/x cannot be"),
        (["train.max_iter=abc"], "train.max_iter ('abc') must be a whole number, 1 or more"),
        (["train.ema.decai=0.9"], "train.ema.decai: no such option; did you mean decay?"),
        (["optimizer.lr=-0.1"], "optimizer.lr: the optimizer cannot be built: Invalid learning"),
        (["model._target_=no.such.Class"], "model._target_: cannot find no.such.Class"),
        (["--eval-only"], "--eval-only needs weights: train.init_checkpoint names none"),
        (["train.init_checkpoint=wsbcn://resnet50_gnws"], "nearest: resnet50_gn_ws"),
        (["train.init_checkpoint=page.pth"], "is no checkpoint but a web page"),
    ],
)
def test_a_mistake_ends_with_one_message(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.pth").write_text("<html>404</html>")
    # Options stand before the overrides.
    flags = arguments if arguments[0].startswith("--") else []
    overrides = [] if flags else arguments
    assert expected in message(capfd, "--config-file", QUICK, *flags, *overrides)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.MAX_ITER", "0", "SOLVER.MAX_ITER (0) must be a whole number, 1 or more"),
        ("SOLVER.EMA.DECAY", "1.5", "SOLVER.EMA.DECAY (1.5) must be from 0 to below 1"),
        ("SOLVER.BASE_LR", "-0.1", "SOLVER.BASE_LR: the optimizer cannot be built: Invalid learn"),
    ],
)
def test_a_mistake_in_a_yaml_config_is_named_by_its_own_key(
    capfd: pytest.CaptureFixture[str], key: str, value: str, expected: str
) -> None:
    datasets = ["DATASETS.TRAIN", "('digits_train',)", "DATASETS.TEST", "('digits_val',)"]
    weights = ["MODEL.WEIGHTS", "", *datasets]
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    assert expected in message(capfd, "--config-file", name, key, value, *weights)


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        (
            "syntax.py",
            "x = 1\ndef x(:",
            "syntax.py has syntax error! Line 2: invalid syntax: def x(:",
        ),
        ("name.py", "model = dict()\nmodel = modl", "line 2: model = modl"),
        ("imports.py", "import nosuchmodule", "No module named 'nosuchmodule'"),
        ("relative.py", "from .nosuchfile import model", "nosuchfile"),
        ("broken.yaml", "MODEL: [1,", "not valid yaml"),
    ],
)
def test_a_config_that_does_not_load_is_named_with_the_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, code: str, expected: str
) -> None:
    (tmp_path / name).write_text(code)
    text = message(capfd, "--config-file", str(tmp_path / name))
    assert expected in text
    assert name in text


def test_the_command_prints_the_message_and_nothing_else(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, ROOT / "train_net.py", "--config-file", QUICK, "--num-gpus=0"],
        capture_output=True, text=True, cwd=tmp_path,
        # This process has silenced the known warnings for those that it starts.
        env={key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"},
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr == (
        "train_net.py: error: --num-gpus is 0, but must be an integer of at least 1\n"
    )
