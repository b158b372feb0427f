"""submit.py --local: a job on this machine, of any script on the engine, to its end and failing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.slurm.conftest import RECIPE, ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SCRIPT = """
import shouting

if __name__ == "__main__":
    shouting.run_command_line(shouting.TASK)

TASK = shouting.TASK
"""
MODULE = """
from wsbcn_d2.detection import Detection
from wsbcn_d2.engine import run_command_line

class Shouting(Detection):
    def check_data(self, config, splits):
        print("HERE", splits, flush=True)

TASK = Shouting()
"""


def submit(output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The tiny recipe in two processes."""
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "slurm" / "submit.py"), "--local", "--tasks-per-node=2"),
            *(f"--config-file={RECIPE}", *words, f"train.output_dir={output}"),
        ],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def events(output: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (output / "slurm" / "events.jsonl").read_text().splitlines()]


def test_a_job_of_another_script_runs_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "shouting.py").write_text(MODULE)
    output = tmp_path / "run"
    done = submit(output, f"--script={tmp_path / 'script.py'}", "train.max_iter=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HERE ['train', 'test']" in done.stdout
    assert [event["event"] for event in events(output)] == ["submitted", "started", "finished"]
    log = (output / "slurm" / "log.txt").read_text()
    assert "HERE" in log and log in done.stdout
    assert (output / "model_final.pth").exists()


def test_a_process_that_raises_ends_the_job_with_its_error(tmp_path: Path) -> None:
    done = submit(tmp_path / "run", "model.train_accident=raise")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the disk is on fire" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("submit.py: error: ")
    (failure,) = [event for event in events(tmp_path / "run") if event["event"] == "failed"]
    assert "rank 1 of 2" in failure["error"]
