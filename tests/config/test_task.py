"""A task that is no detection: the example of docs/tasks.md, as it stands there."""

import json
import re
import subprocess
import sys

import pytest
import torch

from tests.engine.tiny_run import ROOT, environment
from tests.engine.tiny_training import differing, signal_at
from wsbcn_d2.engine import Task, argument_parser, run
from wsbcn_d2.engine.preemption import EXIT_STOPPED


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(), re.S)
    for name, block in zip(("classify.py", "classify_config.py"), blocks, strict=True):
        (folder / name).write_text(block)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("classify")


def classify(folder, output, *more):
    from classify import TASK

    words = ["--config-file", str(folder / "classify_config.py"), *more]
    words += [f"train.output_dir={folder / output}", "train.device=cpu", "train.seed=3"]
    run(argument_parser().parse_args([*words, "train.images_per_gpu=4"]), TASK)
    return torch.load(folder / output / "model_final.pth", weights_only=True)


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(example):
    whole = classify(example, "whole")
    with signal_at(4), pytest.raises(SystemExit) as stopped:
        classify(example, "stopped")
    assert stopped.value.code == EXIT_STOPPED
    assert (example / "stopped" / "last_checkpoint").read_text() == "model_0000004.pth"
    resumed = classify(example, "stopped", "--resume")
    assert differing(whole, resumed) == []
    assert set(whole["norms"]["norms"].values()) == {"SyncSN"}
    first = torch.load(example / "stopped" / "model_0000004.pth", weights_only=True)
    assert len(differing(first["model"], whole["model"])) > 5


def test_its_script_trains_in_several_processes(example):
    command = ["classify.py", "--config-file", "classify_config.py", "--num-gpus", "2"]
    process = subprocess.run(
        [sys.executable, *command, "train.images_per_gpu=2"],
        cwd=example, env=environment(), capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "2 image(s) × 2 process(es) × 2 accumulated" in process.stdout
    table = process.stdout.partition("Final evaluation:")[2].splitlines()
    assert table[1].split() == ["top1"] and table[3].split()[0] == "classification"
    output = example / "output" / "classify"
    records = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [r["iteration"] for r in records if "classification/top1" in r] == [3, 8]
    assert (output / "curves.png").exists() and not (output / "predictions.png").exists()


def test_its_mistakes_are_one_message(example, capsys):
    words = ["--config-file", "classify_config.py", "--num-gpus", "2", "model.num_clases=3"]
    process = subprocess.run(
        [sys.executable, "classify.py", *words],
        cwd=example, env=environment(), capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr.startswith("classify.py: error: model.num_clases: Classifier has no")
    assert "did you mean model.num_classes?" in process.stderr


def test_a_yaml_config_without_an_evaluator_says_what_to_write():
    with pytest.raises(NotImplementedError, match=r"Task\.build_evaluator: needed to evaluate 'v'"):
        Task().build_evaluator(None, "v", "output")
