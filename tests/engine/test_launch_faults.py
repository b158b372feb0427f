"""Ranks, launchers and machines that fail: everything ends soon, and the message is the first's."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid

import pytest

from tests.engine.fault_runs import (
    MARKER,
    SOON,
    Run,
    fault,
    finish,
    free_port,
    marked,
    none_left,
    rank_line,
    wait_for_rank_0,
    wait_until,
)
from tests.engine.tiny_run import ROOT

pytestmark = pytest.mark.timeout(280)


def cases(*forked, spawned):
    """Parameters of tests, most with forked ranks: the same code without a new interpreter, which
    takes seconds.
    """
    return [(*case, False) for case in forked] + [
        pytest.param(*case, True, marks=pytest.mark.slow) for case in spawned
    ]


def started(folder, ranks):
    """Whether all are where they are to be."""
    there = wait_until(lambda: all((folder / f"rank{r}").exists() for r in range(ranks)), 150)
    time.sleep(1)
    return there


@pytest.fixture
def runs():
    """Runs that are ended whatever happens in the test."""
    started = []
    yield started
    for run in started:
        run.stop()


def since_fault(folder):
    return time.time() - float((folder / "fault").read_text())


def pid_of(folder, rank):
    return (folder / f"rank{rank}").read_text()


def check_one_traceback(output, kind):
    """Of the first cause alone, and at the beginning of the message."""
    assert output.count("Traceback") == (kind == "raises"), output
    if kind == "raises":
        assert "raised KeyError: 'the original error'" in output
        assert 'raise KeyError("the original error")' in output


@pytest.mark.parametrize(
    ("kind", "elsewhere", "spawn"),
    cases(
        ("raises", "in a collective"),
        ("raises", "in the data loader"),
        ("killed", "in a collective"),
        ("killed", "busy"),
        ("killed, with workers", "in the data loader"),
        ("killed from outside", "in a collective"),
        ("exits", "in a collective"),
        spawned=[("raises", "in the data loader"), ("killed, with workers", "in a collective")],
    ),
)
def test_one_rank_fails_and_all_end(tmp_path, runs, kind, elsewhere, spawn):
    run = Run(tmp_path, fault, (kind, elsewhere, tmp_path), num_gpus_per_machine=3, spawn=spawn)
    runs.append(run)
    if kind == "killed from outside":
        assert started(tmp_path, 3)
        (tmp_path / "fault").write_text(str(time.time()))
        os.kill(int(pid_of(tmp_path, 1)), signal.SIGKILL)
    assert run.end() == 1
    assert since_fault(tmp_path) < SOON
    output = run.output
    what = {
        "raises": "raised KeyError: 'the original error'",
        "exits": "ended with exit code 7",
    }.get(kind, "was killed by SIGKILL")
    name = rank_line(1, 3, 1, pid_of(tmp_path, 1))
    assert re.search(rf"^error: {name} {what}", output, re.MULTILINE), output
    check_one_traceback(output, kind)
    assert none_left(run.left)


def test_ranks_that_end_well_end_the_run_well(tmp_path, runs):
    runs.append(Run(tmp_path, finish, (tmp_path,), num_gpus_per_machine=2))
    assert runs[0].end() == 0
    assert (tmp_path / "rank0").exists() and (tmp_path / "rank1").exists()
    assert runs[0].output == ""


@pytest.mark.parametrize(
    ("number", "elsewhere", "spawn"),
    cases(
        (signal.SIGINT, "in a collective"),
        (signal.SIGINT, "in the data loader"),
        (signal.SIGTERM, "in the data loader"),
        (signal.SIGKILL, "in a collective"),
        (signal.SIGKILL, "reading"),
        spawned=[
            (signal.SIGINT, "in the data loader"),
            (signal.SIGTERM, "in a collective"),
            (signal.SIGKILL, "reading"),
        ],
    ),
)
def test_the_launcher_is_stopped_and_all_end(tmp_path, runs, number, elsewhere, spawn):
    # Nobody is guilty.
    arguments = ("", elsewhere, tmp_path, -1)
    run = Run(tmp_path, fault, arguments, num_gpus_per_machine=2, spawn=spawn)
    runs.append(run)
    assert started(tmp_path, 2)
    begun = time.time()
    # As a terminal does it: to all of the foreground's process group.
    (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
    code = run.end()
    # The workers of killed ranks look for them every 5 seconds, once they are there.
    assert none_left(run.left, 40 if elsewhere == "reading" else 10)
    assert time.time() - begun < SOON + 20
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    if number == signal.SIGKILL:
        return
    # Besides warnings of imports, one line.
    expected = {signal.SIGINT: "interrupted", signal.SIGTERM: "SIGTERM: stopping"}[number]
    assert run.output.splitlines()[-1].startswith(expected), run.output
    assert "Traceback" not in run.output and (spawn or run.output.count("\n") == 1)


def two_machines(tmp_path, runs, kind, elsewhere, guilty, spawn=False):
    """Two launchers, which take this machine for two."""
    url = f"tcp://127.0.0.1:{free_port()}"
    for machine in (0, 1):
        runs.append(
            Run(
                tmp_path,
                fault,
                (kind, elsewhere, tmp_path, guilty),
                name=f"machine{machine}",
                num_gpus_per_machine=2,
                num_machines=2,
                machine_rank=machine,
                dist_url=url,
                spawn=spawn,
            )
        )


@pytest.mark.parametrize(
    ("kind", "elsewhere", "guilty", "spawn"),
    cases(
        ("raises", "in the data loader", 3),
        ("killed", "in a collective", 2),
        ("killed", "busy", 0),
        spawned=[("raises", "in a collective", 0), ("killed", "in the data loader", 3)],
    ),
)
def test_a_rank_of_one_machine_ends_both(tmp_path, runs, kind, elsewhere, guilty, spawn):
    two_machines(tmp_path, runs, kind, elsewhere, guilty, spawn)
    name = rank_line(guilty, 4, guilty % 2, r"\d+")
    what = "raised KeyError" if kind == "raises" else "was killed by SIGKILL"
    for run in runs:
        assert run.end() == 1
        assert re.search(rf"^error: {name} {what}", run.output, re.MULTILINE), run.output
        check_one_traceback(run.output, kind)
        assert none_left(run.left)
    assert since_fault(tmp_path) < SOON


@pytest.mark.parametrize("machine", [0, 1])
def test_a_killed_launcher_ends_the_other_machine_too(tmp_path, runs, machine):
    two_machines(tmp_path, runs, "", "in the data loader", -1)
    assert started(tmp_path, 4)
    runs[machine].process.kill()
    other = runs[1 - machine]
    assert other.end() == 1
    assert f"error: the launcher of machine {machine} (host " in other.output
    assert f"pid {runs[machine].pid}) is gone without a word" in other.output
    assert none_left(other.left)


def test_ctrl_c_on_one_machine_ends_the_other(tmp_path, runs):
    two_machines(tmp_path, runs, "", "in a collective", -1)
    assert started(tmp_path, 4)
    os.kill(runs[1].pid, signal.SIGINT)
    assert (runs[1].end(), runs[0].end()) == (130, 1)
    assert runs[1].output == "interrupted\n"
    assert "machine 1" in runs[0].output and "was stopped by Ctrl-C" in runs[0].output
    assert none_left(runs[0].left) and none_left(runs[1].left)


def test_two_machines_that_end_well(tmp_path, runs):
    url = f"tcp://127.0.0.1:{free_port()}"
    for machine in (0, 1):
        options = {"num_machines": 2, "machine_rank": machine, "dist_url": url}
        name = f"machine{machine}"
        runs.append(
            Run(tmp_path, finish, (tmp_path,), name=name, num_gpus_per_machine=1, **options)
        )
    assert [run.end() for run in runs] == [0, 0]
    assert [run.output for run in runs] == ["", ""]


def start_as_srun(tmp_path, runs, kind, elsewhere, guilty, world_size=3):
    """One process a rank, told by the environment; nobody above them ends the others."""
    port = str(free_port())
    for rank in range(world_size):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        runs.append(
            Run(
                tmp_path,
                fault,
                (kind, elsewhere, tmp_path, guilty),
                name=f"task{rank}",
                environment=environment,
                num_gpus_per_machine=world_size,
            )
        )


@pytest.mark.parametrize(
    ("kind", "elsewhere", "guilty"),
    [
        ("raises", "in the data loader", 1),
        ("raises", "in a collective", 0),
        ("killed", "in a collective", 1),
        ("killed", "in the data loader", 0),
    ],
)
def test_ranks_without_a_launcher_end_each_other(tmp_path, runs, kind, elsewhere, guilty):
    start_as_srun(tmp_path, runs, kind, elsewhere, guilty)
    name = rank_line(guilty, 3, guilty, runs[guilty].pid)
    for rank, run in enumerate(runs):
        code = run.end()
        assert none_left(run.left)
        if rank != guilty:
            assert code == 1
            what = "raised KeyError: 'the orig" if kind == "raises" else "is gone without a word"
            (line,) = run.output.splitlines()
            assert re.match(f"rank {rank} of 3 .* ends, as {name} {what}", line)
        elif kind == "raises":
            assert code == 1
            assert re.match(f"{name} failed:\nTraceback", run.output)
            check_output = run.output.rstrip()
            assert check_output.endswith("KeyError: 'the original error'")
        else:
            assert code == -signal.SIGKILL
    assert since_fault(tmp_path) < SOON


SCRIPT = """
import sys
from pathlib import Path
from tests.engine.fault_runs import fault
from wsbcn_d2.engine import launch
launch(fault, 1, args=(sys.argv[1], sys.argv[2], Path(sys.argv[3])), device="cpu")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "elsewhere"),
    [
        ("raises", "in a collective"),
        ("raises", "in the data loader"),
        ("killed", "in a collective"),
        ("killed", "in the data loader"),
    ],
)
def test_under_torchrun_its_summary_names_the_rank(tmp_path, kind, elsewhere):
    (tmp_path / "script.py").write_text(SCRIPT)
    marker = uuid.uuid4().hex
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "script.py", kind, elsewhere, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, MARKER: marker, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    summary = process.stderr.rpartition("Root Cause")[2]
    assert "rank      : 1 (local_rank: 1)" in summary, process.stderr
    assert ("KeyError: 'the original error'" if kind == "raises" else "SIGKILL") in summary
    assert none_left(lambda: marked(marker))
    assert since_fault(tmp_path) < SOON


@pytest.mark.slow
def test_under_torchrun_that_is_killed_the_ranks_end(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    marker = uuid.uuid4().hex
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "script.py", "killed from outside", "in a collective", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, MARKER: marker, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert started(tmp_path, 2)
        process.kill()
    assert none_left(lambda: marked(marker))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["spawned", "as by srun"])
def test_a_rank_that_is_busy_for_longer_than_the_fault_timeout_is_none(tmp_path, runs, how):
    options = {"fault_timeout": 10.0, "num_gpus_per_machine": 1}
    if how == "spawned":
        url = f"tcp://127.0.0.1:{free_port()}"
        for machine in (0, 1):
            two = {"num_machines": 2, "machine_rank": machine, "dist_url": url}
            name = f"machine{machine}"
            runs.append(Run(tmp_path, wait_for_rank_0, (25.0,), name=name, **two, **options))
    else:
        port = str(free_port())
        for rank in (0, 1):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            environment |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            environment |= {"MASTER_PORT": port}
            name = f"task{rank}"
            runs.append(
                Run(tmp_path, wait_for_rank_0, (25.0,), name=name, environment=environment,
                    **options)
            )  # fmt: skip
    assert [run.end(90) for run in runs] == [0, 0], [run.output for run in runs]
