"""tools/test_gpu.py: parts that fail or hang stop nothing else; what goes into the docs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_setup import load_tool

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_tool("test_gpu")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def part(tool: ModuleType, code: str, limit: int = 20, read: object = str.strip) -> object:
    return tool.Part("one", "what it shows", limit, ["-c", code], read)


def test_a_part_that_passes_says_what_it_showed(tool: ModuleType, tmp_path: Path) -> None:
    result = tool.run_part(part(tool, "print(40 + 2)"), tmp_path, dict(os.environ))
    assert (result.outcome, result.said) == ("passed", "42")


def test_a_part_that_fails_names_its_log(tool: ModuleType, tmp_path: Path) -> None:
    result = tool.run_part(part(tool, "raise SystemExit(3)"), tmp_path, dict(os.environ))
    assert result.outcome == "failed" and str(tmp_path / "one.log") in result.said


def test_a_part_whose_output_is_wrong_fails(tool: ModuleType, tmp_path: Path) -> None:
    counted = part(tool, "print('5 skipped in 1.00s')", read=tool._read_pytest)
    result = tool.run_part(counted, tmp_path, dict(os.environ))
    assert (result.outcome, result.said) == ("failed", "no test passed")


def test_a_part_is_stopped_at_its_limit_with_its_children(tool: ModuleType, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    result = tool.run_part(part(tool, code, limit=3), tmp_path, dict(os.environ))
    assert result.outcome == "stopped"
    state = Path(f"/proc/{pid_file.read_text()}/status")
    for _ in range(100):
        if not state.exists() or "zombie" in state.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child of a stopped part still runs")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_parts_run_files_that_exist(tool: ModuleType, device: str, tmp_path: Path) -> None:
    found = tool.parts(device, tmp_path)
    assert len({p.name for p in found}) == len(found)
    for each in found:
        paths = [word for word in each.command if word.startswith(("tests/", "tools/", "configs/"))]
        assert paths
        assert all((ROOT / path).exists() for path in paths)
    alone = [p.limit for p in found if p.alone]
    assert max(p.limit for p in found if not p.alone) + sum(alone) <= 720


def test_the_ap_of_a_run_is_held_against_its_target(tool: ModuleType, tmp_path: Path) -> None:
    rows = [{"bbox/AP50": 1.0, "segm/AP50": 1.0}, {"bbox/AP50": 80.0, "segm/AP50": 69.0}, {"lr": 1}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    assert tool._ReadAP(tmp_path, check=False)("") == "bbox/AP50 80.0, segm/AP50 69.0"
    with pytest.raises(ValueError, match=r"below segm/AP50 70"):
        tool._ReadAP(tmp_path, check=True)("")


def test_docs_get_a_gpus_figures_and_no_rehearsal(tool: ModuleType, tmp_path: Path) -> None:
    output, page = tmp_path / "gpu", tmp_path / "performance.md"
    (tmp_path / "performance").mkdir()
    (output / "performance").mkdir(parents=True)
    page.write_text("before\n<!-- gpu -->\nold\n<!-- end gpu -->\nafter\n")
    with pytest.raises(ValueError, match="make test-gpu"):
        tool.write_docs(output, page)
    result = tool.Result("step", "kernels", "passed", 12.0, "40 passed", "python -m pytest")
    summary = {"device": "cpu", "machine": "a GPU", "seconds": 1, "parts": [result._asdict()]}
    (output / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="rehearsal"):
        tool.write_docs(output, page)
    (output / "summary.json").write_text(json.dumps({**summary, "device": "cuda"}))
    (output / "performance.md").write_text("<!-- benchmark: cuda_layers -->\ntable\n<!-- end -->\n")
    (output / "performance" / "cuda_layers.json").write_text("{}")
    (output / "step.xml").write_text('<property name="SN 1x2" value="2 forward, 3 backward" />')
    tool.write_docs(output, page)
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| kernels | passed | 12 | 40 passed |" in text
    assert "| SN 1x2 | 2 forward, 3 backward |" in text and "table" in text
    assert (tmp_path / "performance" / "cuda_layers.json").exists()
