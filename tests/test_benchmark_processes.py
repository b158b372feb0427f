"""tools/benchmark_processes.py."""

import importlib.util
from pathlib import Path

import pytest

_PATH = Path(__file__).resolve().parents[1] / "tools" / "benchmark_processes.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_processes", _PATH)
tool = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tool)


def test_a_layout_is_three_numbers():
    assert tool.parse_layout("4x2x1") == (4, 2, 1)
    assert tool.parse_layout("4x2x3").batch == 24
    for text in ("4x2", "0x1x1", "ax1x1", ""):
        with pytest.raises(ValueError, match="must be PROCESSESxACCUMULATEDxIMAGES"):
            tool.parse_layout(text)


def test_the_table_has_a_row_a_layout_in_the_order_of_the_options(monkeypatch, capsys):
    seconds = {1: [0.5, 0.4, 0.9], 2: [0.2, 0.25, 0.3]}
    monkeypatch.setattr(
        tool, "train", lambda _, layout, *rest: (seconds[layout.processes].pop(0), 2048)
    )
    assert tool.main(["--layouts", "1x2x1", "2x1x1"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["1", "2", "1", "500 (400–900)", "4.0", "1.00", "2"],
        ["2", "1", "1", "250 (200–300)", "8.0", "2.00", "2"],
    ]


def test_what_fails_is_told_with_what_it_said(capsys):
    assert tool.main(["--layouts", "1x1x1", "--config-file", "configs/quick/wsgn.py"]) == 2
    assert "quick/wsgn.py' not found" in capsys.readouterr().err
    assert tool.main(["--steps", "5"]) == 2
    assert "--steps must be over" in capsys.readouterr().err
