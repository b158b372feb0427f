"""tools/benchmark_norms.py: what it counts, what it refuses to print, and every suite once."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "benchmark_norms.py"


class Slow(nn.Module):
    """A contestant that takes two milliseconds and keeps three copies of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        time.sleep(0.002)
        return x.exp().exp().exp() * 1


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """The script; its package is found beside it, as when it is run."""
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("_tool_benchmark_norms", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def measuring(tool: ModuleType) -> ModuleType:
    return importlib.import_module("norm_benchmark.measuring")


def test_kept_bytes_counts_each_storage_once_and_not_the_result(measuring: ModuleType) -> None:
    x = torch.randn(10, 100, requires_grad=True)
    assert measuring.kept_bytes(lambda: x * 2) == 0
    assert measuring.kept_bytes(lambda: (x * 2).exp() * 1) == 4000  # exp keeps its own result
    assert measuring.kept_bytes(lambda: (x * 2).exp()) == 0  # which is not counted when returned
    assert measuring.kept_bytes(lambda: (x * 2).square() * (x + 1)) == 3 * 4000
    weight = torch.randn(10, 100)
    assert measuring.kept_bytes(lambda: x * weight.detach()) == 0  # not allocated here
    assert measuring.kept_bytes(lambda: x * weight.clone().detach()) == 4000
    with torch.no_grad():
        assert measuring.kept_bytes(lambda: (x * 2).exp() * 1) == 0


def test_contestants_take_turns_and_each_starts_as_often(measuring: ModuleType) -> None:
    calls: list[str] = []

    def contestant(name: str, ms: float) -> tuple[str, object]:
        return name, lambda: (calls.append(name), {"train": ms})[1]

    times = measuring.take_turns(dict([contestant("a", 1.0), contestant("b", 2.0)]), rounds=4)
    assert times == {"a": {"train": [1.0] * 4}, "b": {"train": [2.0] * 4}}
    counted = calls[2 * measuring.WARM_UPS :]
    assert [counted[i : i + 2] for i in range(0, 8, 2)] == [["a", "b"], ["b", "a"]] * 2


def results(measuring: ModuleType, ours: list[float], base: list[float]) -> list[object]:
    times = {"GN": {"train": base}, "SN": {"train": ours}}
    found: list[object] = measuring.summarize("layers", "2x64x5x5", times, "GN", {"SN": 1.25})
    return found


def test_ratios_are_of_rounds_not_of_medians(measuring: ModuleType) -> None:
    # The machine slows down to a quarter: each round still says 1.5.
    base = [1.0, 1.0, 2.0, 4.0, 4.0]
    found = results(measuring, [1.5 * b for b in base], base)[1]
    assert (found.median_ms, found.ratio, found.ratio_spread) == (3.0, 1.5, 0.0)
    assert found.quartiles_ms == (1.5, 6.0) and found.kept == 1.25


def test_a_ratio_with_too_much_spread_is_not_printed(
    tool: ModuleType, measuring: ModuleType
) -> None:
    steady = results(measuring, [1.4, 1.5, 1.5, 1.5, 1.6], [1.0] * 5)
    wild = results(measuring, [0.5, 1.0, 1.5, 2.0, 2.5], [1.0] * 5)
    assert "| 1.50 ± 0.00 |" in tool.table(steady, "GN", 0.2)
    noisy = tool.table(wild, "GN", 0.2)
    assert "| noisy |" in noisy and "±" not in noisy
    assert "| 1.50 ± 0.50 |" in tool.table(wild, "GN", 0.7)


def test_layers_go_into_the_page_the_json_and_a_plot(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- benchmark: cpu_layers -->\nold\n<!-- end -->\nafter\n")
    slow = "tests.test_benchmark_norms:Slow"
    command = ["layers", "--norms", "GN", "SN", slow, "--shapes", "2x32x5x5", "--rounds", "4",
               "--max-spread", "1e9", "--write", str(tmp_path / "performance")]  # fmt: skip
    for _ in range(2):  # the second writes over the first
        assert tool.main(command) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- benchmark: cpu_layers -->\n")
    assert text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert text.count("| 2x32x5x5 | SN |") == 1 and "torch: " in text
    assert "performance/cpu_layers.png" in text
    report = json.loads((tmp_path / "performance" / "cpu_layers.json").read_text())
    assert report["command"].endswith(" ".join(command)) and report["machine"]["python"]
    found = {(r["norm"], r["work"]): r for r in report["results"]}
    assert set(w for _, w in found) == {"train", "forward", "backward", "eval"}
    assert all(r["rounds"] == 4 and r["median_ms"] > 0 for r in found.values())
    assert found["GN", "train"]["ratio"] is None
    # Only the input and rows: GroupNorm's x and 2 numbers a group, here a channel.
    assert found["GN", "train"]["kept"] == pytest.approx(1 + 2 / 25)
    assert found[slow, "train"]["kept"] == pytest.approx(3)
    assert found[slow, "forward"]["median_ms"] > 2
    assert found[slow, "forward"]["ratio"] > 1
    assert (tmp_path / "performance" / "cpu_layers.png").stat().st_size > 1000
    assert "medians of fewer than 20" in capsys.readouterr().err


def test_a_page_without_the_mark_is_left_alone(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "p.md"
    page.write_text("nothing here\n")
    tool.write_report(tmp_path / "p", "cpu_layers", [], {}, "command", "GN", 0.2)
    assert page.read_text() == "nothing here\n" and "no table was put" in capsys.readouterr().err
    page.write_text("<!-- benchmark: cpu_layers -->\nnever closed\n")
    with pytest.raises(ValueError, match="no '<!-- end -->'"):
        tool.write_report(tmp_path / "p", "cpu_layers", [], {}, "command", "GN", 0.2)


def test_convolutions(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["convs", "--shapes", "2x8x5x5", "--rounds", "2", "--max-spread", "1e9"]) == 0
    out = capsys.readouterr().out
    assert "| 2x8x5x5 | conv |" in out and "| 2x8x5x5 | WS |" in out


@pytest.mark.parametrize(
    "command, message",
    [
        (["layers", "--norms", "GNN"], "unknown norm 'GNN'; known: BCN, BN"),
        (["layers", "--norms", "no_such:Norm"], "cannot import norm 'no_such:Norm'"),
        (["layers", "--norms", "torch.nn:NoNorm"], "cannot import norm 'torch.nn:NoNorm'"),
        (["layers", "--norms", "SN", "--baseline", "GN"], "--baseline 'GN' must be one of"),
        (["layers", "--shapes", "2x64x5"], "shape '2x64x5' must be NxCxHxW"),
        (["layers", "--shapes", "0x64x5x5"], "in positive numbers"),
        (["layers", "--shapes", "2x33x5x5"], "must be divisible by num_groups"),
        (["convs", "--norms", "GN"], "unknown convolution 'GN'; known: conv, WS"),
        (["models", "--model", "vgg"], "unknown model 'vgg'; known: "),
        (["layers", "--device", "meta"], "must be cpu or cuda"),
        (["layers", "--rounds", "0"], "must be positive"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert tool.main([*command] + ["--shapes", "2x32x3x3"] * ("--shapes" not in command)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["all", "--device", "cuda"]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err


def test_a_sweep_is_four_tables_with_their_own_names(tool: ModuleType) -> None:
    options = tool._parser().parse_args(["all", "--sweep", "--device", "cpu"])
    names = [tool._name(one) for one in tool._variants(options)]
    assert names == [
        "cpu_layers", "cpu_layers_channels_last", "cpu_layers_bfloat16",
        "cpu_layers_bfloat16_channels_last", "cpu_convs", "cpu_convs_channels_last",
        "cpu_convs_bfloat16", "cpu_convs_bfloat16_channels_last", "cpu_models", "cpu_sync",
    ]  # fmt: skip


def run(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_synchronized_norms_on_two_processes() -> None:
    norms = ["SyncBN", "BN", "SyncSN", "SyncBCN"]
    out = run("sync", "--norms", *norms, "--baseline", "BN", "--shapes", "2x32x5x5", "--rounds",
              "2", "--max-spread", "1e9")  # fmt: skip
    case = "2x32x5x5 on 2 processes"
    assert f"| {case} | SyncBN | torch.nn.SyncBatchNorm does not run on CPU |" in out
    for name in norms[1:]:
        assert f"| {case} | {name} |" in out
    assert out.count("±") == 2 * 2 and "noisy" not in out  # ratios to BN


def test_whole_models_train_and_evaluate(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["models", "--model", "mask_rcnn_r18_fpn", "--image-size", "64", "96", "--images",
               "1", "--norms", "GN", "WS+GN", "--rounds", "1"]  # fmt: skip
    assert tool.main(command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "1x64x96 |" in line]
    kept = [float(line.split("|")[8].split()[0]) for line in lines]
    assert all(re.search(r"\(\d+ MiB\)", line) for line in lines)
    assert len(lines) == 2 and kept[0] == 1 and 1 <= kept[1] < 2
