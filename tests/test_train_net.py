"""train_net.py as a user runs it, on the CPU: both config kinds, one process and several."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train_net as train_net_script
from tests.engine.tiny_run import (
    LAZY_CONFIG,
    ROOT,
    make_dataset,
    start_train_net,
    train_net,
    yaml_overrides,
)
from wsbcn_d2.engine import argument_parser


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    make_dataset(root)
    return root


@pytest.fixture(scope="module")
def lazy_run(datasets, tmp_path_factory):
    """A finished lazy run with everything on that is off by default."""
    folder = tmp_path_factory.mktemp("lazy")
    (folder / "tiny.py").write_text(LAZY_CONFIG)
    process = train_net(
        "--config-file", "tiny.py", "train.amp.enabled=True", "train.ema.enabled=True",
        "train.clip_grad.enabled=True",
        datasets=datasets, cwd=folder,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout
    return folder, process.stdout


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_lazy_run_leaves_everything_and_says_where(lazy_run):
    folder, log = lazy_run
    output = folder / "output"
    for name in ("config.yaml", "log.txt", "metrics.json", "model_final.pth"):
        assert (output / name).stat().st_size > 0
        assert str(Path("output") / name) in log.partition("Everything is in")[2]
    for name in ("curves.png", "predictions.png"):
        assert (output / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert name in log.partition("Everything is in")[2]
    assert list(output.glob("events.out.tfevents.*"))
    assert "Final evaluation:" in log and "eta: 0:00:00" in log
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    metrics = records(output)
    assert {"total_loss", "loss_mask", "lr", "grad_norm"} <= set(metrics[-2])
    assert sum("bbox/AP" in record for record in metrics) == 2  # at 3 and at the end


def test_a_checkpoint_holds_all_that_resuming_needs(lazy_run):
    state = torch.load(lazy_run[0] / "output" / "model_final.pth", weights_only=True)
    assert {"model", "trainer", "ema", "norms", "iteration"} <= set(state)
    assert {"optimizer", "grad_scaler", "iteration"} <= set(state["trainer"])
    assert state["trainer"]["hooks"]["DataPosition"] == {
        "seed": 3, "position": 12, "num_samples": 8,
        "total_batch_size": 2, "images_per_gpu": 2, "world_size": 1,
    }  # fmt: skip
    assert state["ema"]["n_averaged"] == 6
    assert set(state["norms"]["norms"].values()) == {"BN"}
    key = "backbone.bottom_up.stem.conv1.weight"
    assert not torch.equal(state["model"][key], state["ema"][f"module.{key}"])


def test_the_saved_config_resumes_in_two_processes_and_evaluates_under_torchrun(lazy_run, datasets):
    folder, _ = lazy_run
    output = folder / "output"
    process = train_net(
        "--config-file", "output/config.yaml", "--resume", "--num-gpus", "2", "train.max_iter=8",
        datasets=datasets, cwd=folder,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout
    assert "Starting training from iteration 6" in process.stdout
    assert "World size: 2" in process.stdout
    assert "NORMALIZATION DIFFERS" not in process.stdout
    assert "began on 1 process(es) and goes on on 2" in process.stdout
    assert "Seed 3, from position 12 of the data" in process.stdout
    assert (output / "log.txt.rank1").exists()
    state = torch.load(output / "model_final.pth", weights_only=True)
    assert state["iteration"] == 7 and state["ema"]["n_averaged"] == 8
    last = records(output)[-1]
    assert last["iteration"] == 8

    process = train_net(
        "--config-file", "output/config.yaml", "--resume", "--eval-only",
        datasets=datasets, cwd=folder,
        runner=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    )  # fmt: skip
    assert process.returncode == 0, process.stdout
    assert "World size: 2" in process.stdout
    # The same weights, the same images, however they are shared out.
    row = next(r for r in process.stdout.splitlines() if r.startswith("bbox  ")).split()
    assert float(row[1]) == pytest.approx(last["bbox/AP"], abs=0.0051)


def test_a_yaml_run_with_this_projects_norms(datasets, tmp_path):
    process = train_net(
        "--config-file", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        *yaml_overrides(), "MODEL.RESNETS.NORM", "SN_IN_LN", "MODEL.WSBCN.STANDARDIZE", "True",
        "OUTPUT_DIR", "out", "SOLVER.EMA.ENABLED", "True", "SOLVER.IMAGES_PER_GPU", "1",
        "SOLVER.SCALE_LR.ENABLED", "True",
        datasets=datasets, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout
    output = tmp_path / "out"
    for name in ("config.yaml", "metrics.json", "curves.png", "predictions.png"):
        assert (output / name).stat().st_size > 0
    assert "Final evaluation:" in process.stdout
    plan = "2 images an optimizer step = 1 image(s) × 1 process(es) × 2 accumulated"
    assert plan in process.stdout
    assert "group 0: 0.02 × 2 / 16 images = 0.0025" in process.stdout
    assert "warm-up of 1000 iterations × 16 / 2 images = 3 iterations" in process.stdout
    state = torch.load(output / "model_final.pth", weights_only=True)
    norms = state["norms"]
    assert set(norms["norms"].values()) == {"SN_IN_LN"}
    assert sum(norms["convs"].values()) == len(norms["norms"])
    assert "ema" in state


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(datasets, tmp_path):
    (tmp_path / "tiny.py").write_text(LAZY_CONFIG)
    process = train_net(
        "--config-file", "tiny.py", "--num-gpus", "2", "optimizer.lr=1e20",
        "lr_multiplier.warmup_factor=1.0", "train.checkpointer.period=1",
        datasets=datasets, cwd=tmp_path,
    )  # fmt: skip
    log = process.stdout
    assert process.returncode == 1
    assert "Traceback" not in log
    assert log.count("the loss is not finite at iteration 1, on rank") == 1
    # What the command says is also in the log files.
    files = [tmp_path / "output" / name for name in ("log.txt", "log.txt.rank1")]
    assert any("the loss is not finite" in file.read_text() for file in files)
    assert "image ids: " in log and "losses: " in log and "model_0000000.pth" in log
    assert "Final evaluation" not in log
    state = torch.load(tmp_path / "output" / "model_0000000.pth", weights_only=True)
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())
    assert (tmp_path / "output" / "last_checkpoint").read_text() == "model_0000000.pth"


def test_a_signal_to_the_launcher_saves_a_checkpoint_and_exits_with_75(datasets, tmp_path):
    (tmp_path / "tiny.py").write_text(LAZY_CONFIG)
    process = start_train_net(
        "--config-file", "tiny.py", "--num-gpus", "2", "train.max_iter=10000",
        "train.checkpointer.period=0", "train.eval_period=0", "train.log_period=1",
        datasets=datasets, cwd=tmp_path,
    )  # fmt: skip
    metrics = tmp_path / "output" / "metrics.json"
    try:
        for _ in range(900):
            if process.poll() is not None or (metrics.exists() and metrics.stat().st_size):
                break
            time.sleep(0.2)
        process.send_signal(signal.SIGUSR2)
        log, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 75, log
    (checkpoint,) = (tmp_path / "output").glob("model_*.pth")
    assert f"--resume goes on from output/{checkpoint.name}" in log
    assert "Traceback" not in log and "Final evaluation" not in log
    state = torch.load(checkpoint, weights_only=True)
    assert len(state["trainer"]["hooks"]["RankStates"]["states"]) == 2


def test_a_wrong_config_name_is_one_clear_message(tmp_path, monkeypatch):
    (tmp_path / "tiny_detector.py").write_text(LAZY_CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", "tiny_detecter.py"])
    with pytest.raises(SystemExit) as stopped:
        train_net_script.main()
    message = stopped.value.code
    assert message.startswith("train_net.py: error: --config-file 'tiny_detecter.py' not found")
    assert "did you mean tiny_detector.py" in message and str(tmp_path) in message


def test_without_detectron2_it_says_what_to_install_and_where_it_looked():
    code = (
        "import runpy, sys; sys.modules['detectron2'] = None; sys.argv = ['train_net.py'];"
        f"runpy.run_path({str(ROOT / 'train_net.py')!r}, run_name='__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert process.returncode == 1
    assert "make setup" in process.stderr and "detectron2.readthedocs.io" in process.stderr
    assert sys.executable in process.stderr and "site-packages" in process.stderr
    assert "Traceback" not in process.stderr


def test_help_has_three_worked_examples():
    text = argument_parser(train_net_script.EPILOG).format_help()
    assert text.count("$ python train_net.py --config-file") == 3
    assert "--dist-url" in text and "--eval-only" in text
