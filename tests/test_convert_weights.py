"""tools/convert_weights.py as a user runs it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.checkpoint.published import Reference, ReleasedSN, norms_named

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "convert_weights.py"


@pytest.fixture(scope="module")
def tool():
    # Not by name: detectron2's wheel brings a package `tools` of its own.
    spec = importlib.util.spec_from_file_location("convert_weights", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "model.pth"
    state = Reference(ReleasedSN, rename=norms_named("sn"), layers=(1, 1, 1, 1)).state()
    torch.save({"state_dict": state}, path)
    return path


def test_it_converts_and_reports_every_key(tool, published, tmp_path, capsys):
    options = ["--minibatch", "8", "--input-format", "BGR", "--stride-in-1x1"]
    options += ["--pixel-mean", "103.53", "116.28", "123.675", "--pixel-std", "1", "1", "1"]
    tool.main([str(published), str(tmp_path / "out.pth"), *options])
    printed = capsys.readouterr().out
    assert "mapped   layer1.0.sn1.mean_weight -> res2.0.conv1.norm.mean_weight" in printed
    assert "ignored  fc.weight: the classifier" in printed
    assert "norm:         SN (unbiased variances)\n" in printed
    recorded = torch.load(tmp_path / "out.pth", weights_only=True)["pretraining"]
    assert recorded["minibatch"] == 8 and recorded["stride_in_1x1"] is True
    assert recorded["input_format"] == "BGR" and recorded["pixel_std"] == (1, 1, 1)
    assert recorded["pixel_mean"] == (103.53, 116.28, 123.675)


def test_quiet_prints_the_summary_only(tool, published, tmp_path, capsys):
    tool.main([str(published), str(tmp_path / "out.pth"), "--quiet", "--source", "sn"])
    printed = capsys.readouterr().out
    assert "mapped   " not in printed and "minibatch:    not known" in printed


def test_an_error_is_one_message(tool, published, tmp_path):
    output = str(tmp_path / "out.pth")
    with pytest.raises(
        SystemExit, match=r"^convert_weights.py: error: .*norms are SN, but .*mmdet"
    ):
        tool.main([str(published), output, "--source", "mmdet", "--no-ws"])
    with pytest.raises(SystemExit, match=r"^convert_weights.py: error: .*none\.pth"):
        tool.main([str(tmp_path / "none.pth"), output])
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(SystemExit, match=r"^convert_weights.py: error: .*--trust"):
        tool.main([str(tmp_path / "module.pth"), output])
    with pytest.raises(SystemExit, match=r"no tensors|no state dict"):
        tool.main([str(tmp_path / "module.pth"), output, "--trust"])
    assert not (tmp_path / "out.pth").exists()


def test_a_shell_gets_the_message_and_a_status(tmp_path):
    process = subprocess.run(
        [sys.executable, TOOL, "none.pth", "out.pth"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "convert_weights.py: error:" in process.stderr and "none.pth" in process.stderr
