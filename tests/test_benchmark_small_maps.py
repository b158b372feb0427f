"""tools/benchmark_small_maps.py: its plain layers are the layers that they are measured against."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close

from wsbcn_d2 import norms

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:.*trains on one sample")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "benchmark_small_maps.py"
    spec = importlib.util.spec_from_file_location("_tool_benchmark_small_maps", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["SN", "SN_IN_LN", "SyncSN", "SSN", "BCN", "WS"])
def test_a_plain_layer_computes_the_same(tool: ModuleType, name: str) -> None:
    build, plain = tool.LAYERS[name]
    ours, theirs = build(norms), plain()
    if name == "WS":
        theirs.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    for training in (True, False):
        x, dy = torch.randn(2, 2, tool.CHANNELS, 3, 3, generator=generator)
        grads = []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y = layer.train(training)(leaf)
            grads.append((y.detach(), *torch.autograd.grad(y, leaf, dy)))
        assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_the_table_has_a_line_for_each_pass(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main(["--rounds", "2", "--layers", "SN", "--before", str(ROOT)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| SN")]
    assert [line.split("|")[2].strip() for line in lines] == ["training", "evaluation"]
    assert all(line.count("|") == 8 for line in lines)


def test_a_checkout_that_is_none_is_named(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no file"):
        tool.main(["--before", str(tmp_path)])
