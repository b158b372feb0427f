"""Ranks and launchers that fail: all processes end soon, with the error of the first."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.engine.fault_runs import Run, fault, finish, free_port, wait_until
from tests.engine.tiny_run import ROOT


@pytest.fixture
def start(tmp_path):
    """Start a run, which is ended whatever happens in the test."""
    started = []

    def start(body, args, **options):
        started.append(Run(tmp_path, body, args, num_gpus_per_machine=2, **options))
        return started[-1]

    yield start
    for run in started:
        run.stop()


def all_there(folder, ranks):
    there = wait_until(lambda: all((folder / f"rank{r}").exists() for r in range(ranks)), 60)
    time.sleep(0.5)
    return there


@pytest.mark.parametrize(
    ("kind", "elsewhere", "message"),
    [
        (
            "raises",
            "in a collective",
            r"failed:\n\nTraceback (.|\n)*KeyError: 'the original error'\n$",
        ),
        (
            "raises",
            "reading",
            r"failed:\n\nTraceback (.|\n)*KeyError: 'the original error'\n$",
        ),
        ("killed", "in a collective", r"was killed by SIGKILL \(often by the out-of-memory"),
        ("killed, with workers", "in a collective", "was killed by SIGKILL"),
        ("exits", "in a collective", "ended with exit code 7"),
    ],
)
def test_one_rank_fails_and_all_end_with_its_error(tmp_path, start, kind, elsewhere, message):
    begun = time.time()
    run = start(fault, (kind, elsewhere, tmp_path))
    assert run.end() == 1
    assert time.time() - begun < 50
    pid = (tmp_path / "rank1").read_text()
    assert re.match(rf"command: error: rank 1 of 2 \(host \S+, pid {pid}\) {message}", run.output)
    assert run.output.count("Traceback") == (kind == "raises")
    assert wait_until(lambda: not run.left(), 10)


@pytest.mark.parametrize("where", ["", " in a worker"])
def test_an_error_of_the_user_in_one_rank_is_one_message_without_traceback(tmp_path, start, where):
    run = start(fault, (f"raises UserError{where}", "in a collective", tmp_path))
    assert run.end() == 1
    assert run.output == "command: error: no image\n  Repair the dataset\n"
    assert wait_until(lambda: not run.left(), 10)


def test_ranks_that_end_well_end_the_run_well(tmp_path, start):
    run = start(finish, (tmp_path,))
    assert (run.end(), run.output) == (0, "")
    assert (tmp_path / "rank0").exists() and (tmp_path / "rank1").exists()


@pytest.mark.parametrize(
    ("number", "elsewhere", "code"),
    [
        (signal.SIGINT, "reading", 130),
        (signal.SIGTERM, "in a collective", -signal.SIGTERM),
        (signal.SIGKILL, "in a collective", -signal.SIGKILL),
        (signal.SIGKILL, "reading", -signal.SIGKILL),
    ],
)
def test_the_launcher_is_stopped_and_all_end(tmp_path, start, number, elsewhere, code):
    run = start(fault, ("", elsewhere, tmp_path, -1))
    assert all_there(tmp_path, 2)
    # Ctrl-C in a terminal signals the whole process group of the foreground.
    (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
    assert run.end() == code
    # The data loader's workers look every 5 seconds for the process that they work for.
    assert wait_until(lambda: not run.left(), 30)
    if number == signal.SIGINT:
        assert run.output == "command: stopped by Ctrl-C\n"


def two_machines(start, body, args):
    """Two launchers, which take this machine for two."""
    options = {"num_machines": 2, "dist_url": f"tcp://127.0.0.1:{free_port()}"}
    return [start(body, args, machine_rank=m, name=f"machine{m}", **options) for m in (0, 1)]


def test_two_machines_that_end_well(tmp_path, start):
    runs = two_machines(start, finish, (tmp_path,))
    assert [(run.end(), run.output) for run in runs] == [(0, ""), (0, "")]
    assert all((tmp_path / f"rank{rank}").exists() for rank in range(4))


def test_the_collectives_of_the_other_machine_fail_too(tmp_path, start):
    # Rank 1 waits for rank 2, and rank 0 for rank 1.
    runs = two_machines(start, fault, ("raises", "in a collective", tmp_path, 2))
    assert [run.end() for run in runs] == [1, 1]
    assert "rank 2 of 4" in runs[1].output and "KeyError: 'the original error'" in runs[1].output
    assert "rank 1 of 4" in runs[0].output and "onnection" in runs[0].output
    assert wait_until(lambda: not runs[0].left() and not runs[1].left(), 10)


SCRIPT = """
import sys
from pathlib import Path
from tests.engine.fault_runs import fault
from wsbcn_d2.engine import launch
launch(fault, 1, args=(sys.argv[1], "in a collective", Path("."), int(sys.argv[2])), device="cpu")
"""


@pytest.fixture
def torchrun(tmp_path):
    """Start the script in two processes of torchrun."""
    (tmp_path / "script.py").write_text(SCRIPT)
    started = []

    def start(*args):
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--standalone",
                 "--nproc_per_node", "2", "script.py", *args],
                cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["raises", pytest.param("killed", marks=pytest.mark.slow)])
def test_the_summary_of_torchrun_names_the_rank(torchrun, kind):
    process = torchrun(kind, "1")
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    summary = error.rpartition("Root Cause")[2]
    assert "rank      : 1 (local_rank: 1)" in summary, error
    assert ("KeyError: 'the original error'" if kind == "raises" else "SIGKILL") in summary


@pytest.mark.slow
def test_the_ranks_of_a_torchrun_that_is_killed_end(tmp_path, torchrun):
    process = torchrun("", "-1")
    assert all_there(tmp_path, 2)
    process.kill()
    pids = [int((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1)]
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10)
