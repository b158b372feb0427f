"""submit.py and its parts, where there is no SLURM."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist
from wsbcn_slurm import record, split_log, submit
from wsbcn_slurm.job_states import QueuedJob
from wsbcn_slurm.profile import CLUSTERS, Profile, make_profile, parse_minutes
from wsbcn_slurm.run_folder import RunFolder
from wsbcn_slurm.status import read_status
from wsbcn_slurm.sweep import combinations, run_name
from wsbcn_slurm.task import TrainingTask, meet

from wsbcn_d2.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
RECIPE = str(ROOT / "tests/slurm/tiny_digits.py")


def dry_run(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        submit.main(["--dry-run", *arguments])
    return out.getvalue()


# --- profiles ---


def profile_of(cluster: object, *options: str) -> Profile:
    return make_profile(submit.argument_parser().parse_args([f"--cluster={cluster}", *options]))


def test_template_and_every_other_profile_load():
    profiles = sorted(CLUSTERS.glob("*.yaml"))
    assert "template" in [path.stem for path in profiles]
    for path in profiles:
        assert isinstance(profile_of(path.stem), Profile)


def test_template_names_every_field():
    text = (CLUSTERS / "template.yaml").read_text()
    for name in Profile.__dataclass_fields__:
        assert f"\n{name}:" in text


def test_options_replace_scalars_and_add_to_lists(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("nodes: 2\nsetup: [one]\nenv: {A: 1, B: 2}\n")
    profile = profile_of(path, "--nodes=3", "--setup=two", "--env=B=3")
    assert (profile.nodes, profile.setup, profile.env) == (3, ["one", "two"], {"A": "1", "B": "3"})
    assert profile.time == Profile().time


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("partitoin: gpu", "unknown field 'partitoin'; did you mean partition"),
        ("nodes: many", "nodes .'many'.: .*could not be converted to Integer"),
        ("nodes: 0", "nodes .0. must be at least 1"),
        ("env: A", "env .'A'.: Cannot assign str to Dict"),
        ("qos: [a, b]", "qos .*Cannot convert 'list' to string"),
        ("{nodes: 2, min_nodes: 3}", "min_nodes .3. must not exceed nodes .2."),
        ("{gpus_per_node: 4, tasks_per_node: 2}", "must equal gpus_per_node"),
        ("{time: 2, grace: 120}", "grace .120 seconds. must be shorter"),
        ("time: tomorrow", "must be minutes"),
        ("- a", "must be `field: value` lines"),
        ("a: [", "profile.yaml"),
    ],
)
def test_mistakes_in_a_profile_are_named(tmp_path: Path, content: str, message: str):
    path = tmp_path / "profile.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        profile_of(path)
    assert "\n" not in str(error.value)


def test_unknown_cluster_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"not one of: .*template"):
        profile_of("nowhere")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("12:00:00", 720),
        ("1-00", 1440),
        ("2-06:30", 3270),
        ("1-0:0:1", 1441),
        ("5:30", 6),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, minutes: int):
    assert parse_minutes(text) == minutes


# --- sweeps ---


def test_sweep_is_the_product_and_keeps_brackets_together():
    runs = combinations(["a.b=1,2", "c=[1,2],'x,y'"], pairs=False)
    assert runs == [["a.b=1", "c=[1,2]"], ["a.b=1", "c='x,y'"], ["a.b=2", "c=[1,2]"],
                    ["a.b=2", "c='x,y'"]]  # fmt: skip
    assert combinations(["SEED=1,2"], pairs=True) == [["SEED", "1"], ["SEED", "2"]]
    assert "/" not in run_name(["model.path=/a/b"])


def test_sweep_from_a_file(tmp_path: Path):
    path = tmp_path / "runs"
    path.write_text("a=1 b='x y'  # first\n\na=2\n")
    assert combinations([str(path)], pairs=False) == [["a=1", "b=x y"], ["a=2"]]


@pytest.mark.parametrize("sweeps", [["a"], ["a=1,,2"], ["=1"], ["a=1,1"]])
def test_sweeps_that_make_no_sense_are_refused(sweeps: list[str]):
    with pytest.raises(ConfigError):
        combinations(sweeps, pairs=False)


# --- the script ---


def test_dry_run_of_a_profile_is_the_golden_file(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    output = dry_run(
        f"--cluster={GOLDEN / 'profile.yaml'}",
        f"--config-file={RECIPE}",
        "dataloader.train.total_batch_size=96",
        f"train.output_dir={tmp_path}/run",
    )
    output = output.replace(str(tmp_path), "/folder").replace(str(ROOT), "/checkout")
    golden = GOLDEN / "dry_run.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(output)
    assert output == golden.read_text()
    assert not (tmp_path / "run").exists()


def test_script_is_valid_bash(tmp_path: Path):
    output = dry_run(f"--config-file={RECIPE}", f"train.output_dir={tmp_path}/a run")
    script = output[output.index("#!/bin/bash") :]
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sweep_is_one_array(tmp_path: Path):
    output = dry_run(
        f"--config-file={RECIPE}", "--sweep=train.seed=1,2,3", "--max-parallel=2",
        f"train.output_dir={tmp_path}/sweep",
    )  # fmt: skip
    assert "#SBATCH --array=0-2%2" in output
    assert f"Output:     {tmp_path}/sweep/train.seed_3\n" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes=3", "--tasks-per-node=1"], "total_batch_size .4. must be a positive multiple"),
        (["--nodes=4", "--min-nodes=3"], "total_batch_size .4. must be a positive multiple"),
        (["train.output_dir={tmp}/file/run"], "cannot be written: .*file"),
        (["model.backbone.bottom_up.stem.norm=GNN"], "cannot be built: .*GNN"),
        (["train.max_itre=3"], "train.max_itre: no such option; did you mean max_iter"),
        (["--config-file=nowhere.py"], "not found"),
        (["train.output_dir={tmp}/old"], "holds an earlier run's checkpoints"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(
    tmp_path: Path, monkeypatch, arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    (tmp_path / "file").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "last_checkpoint").touch()
    words = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    options = [word for word in words if word.startswith("--")]
    overrides = [word for word in words if not word.startswith("--")]
    if not any("output_dir" in word for word in words):
        overrides.append(f"train.output_dir={tmp_path}/run")
    with pytest.raises(SystemExit, match=f"submit.py: error: (?s:.)*{message}"):
        dry_run(f"--config-file={RECIPE}", *options, *overrides)
    assert not (tmp_path / "run").exists()


# --- what a job leaves and runs from ---


def test_snapshot_holds_the_code_as_it_is_on_disk(tmp_path: Path):
    record.copy_code(tmp_path)
    for name in ("wsbcn_d2/engine/train.py", "slurm/wsbcn_slurm/job.sh", "train_net.py"):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


def test_labelled_output_is_split(tmp_path: Path):
    merged = io.BytesIO()
    text = b"=== job ===\n0: a\n 1: b: c\n0: \nsrun: error\n10: d\n"
    split_log.split(io.BytesIO(text), merged, tmp_path)
    assert merged.getvalue() == text
    parts = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert parts == {"rank_0.txt": b"a\n\n", "rank_1.txt": b"b: c\n", "rank_10.txt": b"d\n"}


# --- rendezvous ---


def meet_as(rank: int, folder: Path, timeout: float = 60, **variables: str) -> tuple[Any, str, int]:
    """What a process of a job on two nodes gets: a store, and torchrun's address for it."""
    job = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost,b"}
    job |= {"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": str(rank)}
    with mock.patch.dict(os.environ, {**job, **variables}):
        store = meet(folder, timeout)
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == (str(rank), "2")
        return store, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def test_the_processes_of_an_attempt_find_its_store(tmp_path: Path):
    folders = [tmp_path / "attempt_7.0", tmp_path / "attempt_7.1"]
    for folder in folders:
        folder.mkdir()
    stores = [meet_as(0, folder)[0] for folder in folders]
    assert stores[0].port != stores[1].port
    for store, folder in zip(stores, folders, strict=True):
        none, host, port = meet_as(1, folder)
        assert none is None
        assert (host, port) == ("localhost", store.port)
        dist.TCPStore(host, port, is_master=False).set("key", folder.name)
        assert store.get("key") == folder.name.encode()


def test_rank_0_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"rank 1 on \S+ did not find rank 0 within 0 sec"):
        meet_as(1, tmp_path, timeout=0)


def test_a_name_that_does_not_resolve_is_an_error_that_says_so(tmp_path: Path):
    name = "no-such-host.invalid"
    with pytest.raises(SystemExit, match=f"cannot resolve .* '{name}'"):
        meet_as(0, tmp_path, timeout=0, MASTER_ADDR=name)


# --- a process ---


@pytest.mark.parametrize(
    ("script", "status", "error"),
    [
        ("assert os.environ['WORLD_SIZE'] == '1' and sys.argv[1:] == ['--resume', 'a=1']", 0, ""),
        ("sys.exit(75)", 0, ""),
        ("sys.exit('train: no such option')", 1, "train: no such option"),
        ("raise ValueError('no')", 1, "ValueError: no"),
        ("raise RuntimeError('gloo: Connection closed by peer')", 1, ""),  # not the first error
    ],
)
def test_process_runs_the_script_and_notes_its_error(
    tmp_path: Path, script: str, status: int, error: str
):
    path = tmp_path / "script.py"
    path.write_text(f"import os, sys\n{script}\n")
    attempt = RunFolder(tmp_path).folder / "attempt_7_3.1"
    attempt.mkdir(parents=True)
    link = tmp_path / "links" / "3"  # as an array's job finds the run's folder
    link.parent.mkdir()
    link.symlink_to(attempt.parent)
    job = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "9", "SLURM_JOB_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0"}
    task = TrainingTask(str(path), ["a=1"])
    with mock.patch.dict(os.environ, {**job, "WSBCN_ATTEMPT": str(link / attempt.name)}):
        process = multiprocessing.get_context("fork").Process(target=task)
        process.start()
    process.join(60)
    assert process.exitcode == status
    assert (attempt / "stopped").exists() == ("75" in script)
    failed = [(e["job"], e["restart"], e["error"]) for e in RunFolder(tmp_path).events()]
    assert failed == ([("7_3", 1, error)] if error else [])


# --- job.sh ---


@pytest.mark.parametrize(
    ("command", "restart", "events", "status"),
    [
        ("exit 0", 0, ["started", "finished"], 0),
        ("exit 1", 0, ["started"], 1),
        ("touch $WSBCN_ATTEMPT/stopped", 0, ["started", "requeued"], 1),
        ("touch $WSBCN_ATTEMPT/stopped", 2, ["started", "failed"], 1),
        ("exit 140", 1, ["started", "requeued"], 1),  # killed by SIGUSR2
        ("exit 137", 0, ["started"], 137),  # killed, but not by job.sh
        ("kill -USR2 $PPID; sleep 0.5; exit 1", 0, ["started"], 1),
        ("kill -USR2 $PPID; sleep 0.5; exit 137", 0, ["started", "requeued"], 1),
        ("kill -USR2 $PPID; sleep 0.5", 0, ["started", "finished"], 0),
    ],
)
def test_job_is_requeued_when_it_was_told_to_stop(
    tmp_path: Path, command: str, restart: int, events: list[str], status: int
):
    run = RunFolder(tmp_path)
    run.folder.mkdir()
    for name in ("srun", "scontrol", "scancel"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        # scontrol does not succeed, or job.sh would wait for its end.
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/calls; test {name} = srun')
        program.chmod(0o755)
    variables = {
        "run": str(run.folder), "python": sys.executable, "tasks_per_node": "2",
        "max_requeues": "2", "last_call": "60", "node_failure_wait": "60", "SLURM_JOB_ID": "9",
        "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_NUM_NODES": "3",
        "SLURM_RESTART_COUNT": str(restart), "SLURM_JOB_NODELIST": "n[1-3]",
        "PYTHONPATH": str(ROOT / "slurm"), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    }  # fmt: skip
    script = ROOT / "slurm" / "wsbcn_slurm" / "job.sh"
    done = subprocess.run(
        ["bash", str(script), "bash", "-c", f"echo '1: hello'; {command}"],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert "=== job 7_1, restart" in done.stdout
    assert (run.folder / "rank_1.txt").read_text() == "hello\n"
    found = run.events()
    assert [event["event"] for event in found] == events
    assert all((event["job"], event["restart"]) == ("7_1", restart) for event in found)
    assert (found[0]["nodes"], found[0]["tasks"]) == ("n[1-3]", 6)
    assert abs(found[-1]["time"] - time.time()) < 60
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    assert ("scontrol requeue 7_1" in calls) == ("requeued" in events)
    assert ("scancel --signal=USR2 7_1" in calls) == ("kill" in command)
    assert not list(run.folder.glob("attempt_*"))


# --- status ---

SUBMITTED = {"nodes": 2, "max_iter": 10, "images": 4, "metric": "AP"}


@pytest.mark.parametrize(
    ("events", "queued", "ended", "log", "state"),
    [
        ([], True, {}, "", "PENDING (Priority)"),
        (["started"], False, {}, "slurmstepd: error: *** JOB 7 ON n CANCELLED AT x DUE TO TIME "
         "LIMIT ***", "TIMEOUT"),
        (["started"], False, {}, "slurmstepd: error: *** JOB 7 ON n CANCELLED AT x ***",
         "CANCELLED"),
        (["started"], False, {"7": "NODE_FAIL"}, "", "NODE_FAIL"),
        (["started", "requeued", "started", "finished"], False, {}, "", "COMPLETED"),
        (["started", "failed"], False, {}, "", "FAILED"),
        (["started", "cancelled"], False, {}, "", "CANCELLED"),
        (["started"], False, {}, "", "FAILED"),
        ([], False, {}, "", "FAILED (never started)"),
    ],
)  # fmt: skip
def test_state_of_a_run(
    tmp_path: Path, events: list[str], queued: bool, ended: dict[str, str], log: str, state: str
):
    run = RunFolder(tmp_path)
    run.folder.mkdir()
    run.note("submitted", "7", **SUBMITTED)
    for event in events:
        run.note(event, "7", rank=3, error="ValueError: no")
    run.log.write_text(log)
    (tmp_path / "metrics.json").write_text('{"iteration": 4, "time": 0.5}\n{"bbox/AP": 3.25}\n')
    queue = {"7": QueuedJob("PENDING", 2, "(Priority)")} if queued else {}
    status = read_status(run, queue, ended)
    assert (status["state"], status["iteration"]) == (state, "5 / 10")
    assert status["result"] == "bbox/AP 3.2"
    assert status["last error"] == {"FAILED": "rank 3: ValueError: no"}.get(
        state if "failed" in events else "", log.partition("error: ")[2]
    )


def test_a_running_run_says_how_fast_it_is(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.folder.mkdir()
    run.note("submitted", "7", **SUBMITTED)
    (tmp_path / "metrics.json").write_text('{"iteration": 4, "time": 0.5, "eta_seconds": 90.0}\n')
    status = read_status(run, {"7": QueuedJob("RUNNING", 1, "n1")}, {})
    assert (status["state"], status["nodes"], status["ETA"]) == ("RUNNING", "1", "0:01:30")
    assert status["images/s"] == "8.0"


def test_events_of_other_writers_do_not_hurt(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.folder.mkdir()
    run.note("submitted", "7")
    with open(run.folder / "events.jsonl", "a") as file:
        file.write('{"time": 1, "ev')  # just being written
    assert run.jobs() == ["7"]
    assert run.next_submission().name == "1"
    assert run.events()[0]["event"] == "submitted"
