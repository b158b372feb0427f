"""submit.py and its parts, where there is no SLURM."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import cluster_profile
import code_snapshot
import pytest
import split_log
import submit
import torch.distributed as dist
from cluster_profile import Profile, ProfileError, load_profile, parse_minutes
from job_states import QueuedJob
from rendezvous import RendezvousError, meet, ports_of, resolve
from run_folder import RunFolder
from status import read_status
from sweep import SweepError, combinations, run_name
from training_task import TrainingTask

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
RECIPE = str(ROOT / "tests/slurm/tiny_digits.py")


def dry_run(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        submit.main(["--dry-run", *arguments])
    return out.getvalue()


# --- profiles ---


def test_template_and_every_other_profile_load():
    profiles = sorted(cluster_profile.CLUSTERS.glob("*.yaml"))
    assert "template" in [path.stem for path in profiles]
    for path in profiles:
        assert isinstance(load_profile(path.stem, {}), Profile)


def test_template_names_every_field():
    text = (cluster_profile.CLUSTERS / "template.yaml").read_text()
    for name in Profile.__dataclass_fields__:
        assert f"\n{name}:" in text


def test_options_replace_scalars_and_add_to_lists(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("nodes: 2\nsetup: [one]\nenv: {A: 1, B: 2}\n")
    options: dict[str, Any] = {"nodes": 3, "setup": ["two"], "env": {"B": "3"}, "time": None}
    profile = load_profile(str(path), options)
    assert (profile.nodes, profile.setup, profile.env) == (3, ["one", "two"], {"A": "1", "B": "3"})
    assert profile.time == Profile().time


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("partitoin: gpu", r"unknown field 'partitoin'; did you mean partition\? .*qos"),
        ("nodes: many", "nodes .'many'. must be a whole number"),
        ("nodes: 0", "nodes .0. must be at least 1"),
        ("env: [A]", "env .* must be NAME: VALUE lines"),
        ("setup: module load x", "setup .* must be a list"),
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
    with pytest.raises(ProfileError, match=message) as error:
        load_profile(str(path), {})
    assert "\n" not in str(error.value)


def test_unknown_cluster_lists_the_known_ones():
    with pytest.raises(ProfileError, match=r"not one of: .*template"):
        load_profile("nowhere", {})


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
    with pytest.raises(SweepError):
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
        (["--local", "--nodes=2"], "nodes .2. must be 1 with --local"),
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
    code_snapshot.take(tmp_path)
    for name in ("wsbcn_d2/engine/train.py", "slurm/training_task.py", "train_net.py"):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


def test_labelled_output_is_split(tmp_path: Path):
    merged = io.BytesIO()
    text = b"=== job ===\n0: a\n 1: b: c\n0: \nsrun: error\n10: d\n"
    split_log.split(io.BytesIO(text), merged, tmp_path)
    assert merged.getvalue() == text
    parts = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert parts == {"rank_0.txt": b"a\n\n", "rank_1.txt": b"b: c\n", "rank_10.txt": b"d\n"}


# --- rendezvous ---


def test_a_name_that_does_not_resolve_is_an_error_that_says_so():
    with pytest.raises(RendezvousError, match=r"cannot resolve the name .no-such-host\.invalid"):
        resolve("no-such-host.invalid", timeout=0)


def test_a_taken_port_is_passed_over_by_both_sides():
    job = "4711"
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", ports_of(job)[0]))
        taken.listen()
        other = meet(0, "127.0.0.1", job, "4711.0", timeout=60)
        store = meet(0, "127.0.0.1", job, "4711.1", timeout=60)
        assert other.port != store.port
        found = meet(1, "127.0.0.1", job, "4711.1", timeout=60)
        assert found.port == store.port
        store.set("key", "value")
        assert found.get("key") == b"value"


def test_rank_0_that_is_not_there_is_an_error():
    with pytest.raises(RendezvousError, match=r"rank 1 .* did not find rank 0"):
        meet(1, "127.0.0.1", "12345", "12345.0", timeout=1)


def test_jobs_with_following_numbers_have_different_ports():
    first = [ports_of(str(job))[0] for job in range(1000, 1100)]
    assert len(set(first)) == 100
    assert all(10000 <= port < 32768 for port in first)


# --- requeueing ---


class Environment:
    """Stands for submitit's."""

    def __init__(self, rank: int) -> None:
        self.global_rank = rank
        self.job_id = "7"
        self.requeued: list[int] = []

    def name(self) -> str:
        return "local"

    def _requeue(self, countdown: int) -> None:
        self.requeued.append(countdown)


@pytest.mark.parametrize(
    ("rank", "restart", "requeued", "events"),
    [(0, 0, [1], ["requeued"]), (0, 1, [0], ["requeued"]), (1, 0, [], []), (0, 2, [], ["failed"])],
)
def test_rank_0_requeues_until_the_bound(
    tmp_path: Path, monkeypatch, rank: int, restart: int, requeued: list[int], events: list[str]
):
    import training_task

    environment = Environment(rank)
    monkeypatch.setattr(training_task, "JobEnvironment", lambda: environment)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    run = RunFolder(tmp_path)
    run.new_submission()
    attempt = training_task._Attempt(TrainingTask(str(tmp_path), "x.py", max_requeues=2))
    with pytest.raises((SystemExit, training_task.UncompletedJobError)) as end:
        attempt.requeue("a test")
    assert environment.requeued == requeued
    assert [event["event"] for event in run.events()] == events
    assert (end.type is SystemExit) == (events != ["failed"])


def test_only_the_cause_of_a_failure_is_noted():
    from training_task import _is_consequence

    assert _is_consequence(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert _is_consequence(dist.DistNetworkError("timed out"))
    assert not _is_consequence(ValueError("NCCL"))
    assert not _is_consequence(RuntimeError("CUDA out of memory"))


# --- status ---


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
    run.new_submission()
    run.write_run(max_iter=10, images=4, nodes=2)
    run.note("submitted", "7")
    for event in events:
        run.note(event, "7", rank=3, error="ValueError: no")
    run.log.write_text(log)
    (tmp_path / "metrics.json").write_text('{"iteration": 4, "time": 0.5}\n{"bbox/AP": 3.25}\n')
    queue = {"7": QueuedJob("PENDING", 2, "(Priority)")} if queued else {}
    status = read_status(run, queue, ended)
    assert (status.state, status.iteration, status.ap) == (state, 5, 3.25)
    assert status.error == {"FAILED": "rank 3: ValueError: no"}.get(
        state if "failed" in events else "", log.partition("error: ")[2]
    )


def test_a_running_run_says_how_fast_it_is(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.new_submission()
    run.write_run(max_iter=10, images=4, nodes=2)
    run.note("submitted", "7")
    (tmp_path / "metrics.json").write_text('{"iteration": 4, "time": 0.5, "eta_seconds": 90.0}\n')
    status = read_status(run, {"7": QueuedJob("RUNNING", 1, "n1")}, {})
    assert (status.state, status.nodes, status.eta) == ("RUNNING", 1, 90.0)
    assert status.images_per_second == 8.0


def test_events_of_other_writers_do_not_hurt(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.new_submission()
    run.note("submitted", "7")
    with open(run.folder / "events.jsonl", "a") as file:
        file.write('{"time": 1, "ev')  # just being written
    assert run.jobs() == ["7"]
    assert run.next_submission().name == "2"
    assert run.events()[0]["event"] == "submitted"
