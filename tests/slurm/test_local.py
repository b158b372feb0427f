"""submit.py --local: the job's processes on this machine, stopped, started again, and failing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.slurm.conftest import RECIPE, ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
               "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip


def start(output: Path, *overrides: str) -> subprocess.Popen[str]:
    """Two processes of the tiny recipe."""
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "slurm" / "submit.py"), "--local", "--tasks-per-node=2"),
            *(f"--config-file={RECIPE}", f"train.output_dir={output}", *overrides),
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def events(output: Path, kind: str) -> list[dict[str, Any]]:
    lines = (output / "slurm" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def iterations(output: Path) -> list[int]:
    path = output / "metrics.json"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["iteration"] for line in lines if line.endswith("}")]


def test_a_signal_restarts_the_run_where_it_stopped(tmp_path: Path) -> None:
    output, go_on = tmp_path / "run", tmp_path / "go_on"
    process = start(
        output, "train.max_iter=6", "dataloader.train.mapper.seconds=0.5",
        f"dataloader.train.mapper.until={go_on}",
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not iterations(output):
            assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
            time.sleep(0.2)
        process.send_signal(signal.SIGUSR2)
        go_on.touch()
        text, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, text
    assert [event["restart"] for event in events(output, "started")] == [0, 1]
    assert [i for i in iterations(output) if i < 6] == list(range(6))
    log = (output / "slurm" / "log.txt").read_text()
    assert "0: " in log and "1: " in log and "Resuming at iteration" in log
    assert all(line in text for line in log.splitlines())


def test_a_process_that_raises_ends_the_others_with_its_error(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "dataloader.train.mapper.failing_rank=1")
    try:
        text, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1, text
    (failure,) = events(tmp_path / "run", "failed")
    assert failure["rank"] == 1 and "the disk is on fire" in failure["error"]
    assert not events(tmp_path / "run", "requeued")
