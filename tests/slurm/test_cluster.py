"""submit.py, status.py and cancel.py on a real SLURM: the quick recipe on two nodes."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch

from tests.slurm.cluster import PATIENCE, wait_for
from tests.slurm.conftest import User

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200 * PATIENCE)]

ITERATIONS = 16


@pytest.fixture(scope="session")
def uninterrupted(user: User) -> str:
    """A run to the end: its name."""
    options = ("--tasks-per-node=2",)
    (job,) = user.submit("whole", f"train.max_iter={ITERATIONS}", options=options, by_script=True)
    assert user.wait_until_ended("whole", job) == "COMPLETED", user.log("whole")[-5000:]
    return "whole"


def weights(user: User, run: str) -> dict[str, torch.Tensor]:
    path = user.output(run) / "model_final.pth"
    return torch.load(path, weights_only=False)["model"]


def assert_same_weights(user: User, run: str, other: str) -> None:
    ours, theirs = weights(user, run), weights(user, other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def table(user: User, run: str, by_script: bool = False) -> str:
    done = (user.script if by_script else user.command)("status", str(user.output(run)))
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_run_to_the_end_leaves_an_ap_table_and_a_record(user: User, uninterrupted: str):
    log = user.log(uninterrupted)
    assert re.search(r"^0: +AP +AP50 +AP75", log, re.MULTILINE)
    assert re.search(r"^0: bbox +\d", log, re.MULTILINE)
    folder = user.output(uninterrupted) / "slurm"
    for rank in range(4):
        text = (folder / f"rank_{rank}.txt").read_bytes().decode()
        assert f"global_rank={rank}(4)" in text
        # The same lines, without their labels, and nobody else's.
        labelled = re.findall(rf"^{rank}: ?(.*)$", log, re.MULTILINE)
        assert text.removesuffix("\n").split("\n") == labelled
    nodes = [re.search(r"hostname=\S+, local_rank=(\d)\(2\), node=(\d)\(2\)", t) for t in
             ((folder / f"rank_{r}.txt").read_text() for r in range(4))]  # fmt: skip
    assert [match and match.groups() for match in nodes] == [
        ("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")
    ]  # fmt: skip
    records = {path.name for path in (folder / "1").iterdir()}
    assert {"config.yaml", "command.txt", "commit.txt", "diff.patch", "environment.txt"} <= records
    assert f"train.max_iter={ITERATIONS}" in (folder / "1" / "command.txt").read_text()
    words = table(user, uninterrupted, by_script=True)
    assert "COMPLETED" in words and f"{ITERATIONS} / {ITERATIONS}" in words


def test_preempted_run_ends_with_the_weights_of_an_uninterrupted_one(
    user: User, uninterrupted: str, tmp_path: Path
):
    go_on = tmp_path / "go_on"
    (job,) = user.submit(
        "preempted",
        f"train.max_iter={ITERATIONS}",
        "dataloader.train.mapper.seconds=1",
        f"dataloader.train.mapper.until={go_on}",
        options=("--tasks-per-node=2",),
    )
    user.wait_for_iteration("preempted", 4)
    user.cluster.run("scancel", "--batch", "--signal=USR2", job)
    user.wait_for_event("preempted", "requeued")
    go_on.touch()
    user.release(job)
    assert user.wait_until_ended("preempted", job) == "COMPLETED"
    assert "SIGUSR2 received" in user.log("preempted")
    starts = user.events("preempted", "started")
    assert [event["restart"] for event in starts] == [0, 1]
    # Each iteration once: the second part begins where the first has stopped.
    assert [i for i in user.iterations("preempted") if i < ITERATIONS] == list(range(ITERATIONS))
    assert_same_weights(user, "preempted", uninterrupted)


def test_signal_before_the_training_and_in_a_step_that_does_not_end(user: User):
    options = ("--grace=8", "--max-requeues=2")
    (job,) = user.submit("stuck", "dataloader.train.mapper.seconds=600", options=options)
    user.wait_for_event("stuck", "started")
    # Rank 0 has begun, and is not yet training.
    address = user.output("stuck") / "slurm" / f"attempt_{job}.0" / "address"
    wait_for(address.exists, "rank 0's address", 120)
    for restart, reason in enumerate(["outside of the training", "no step has ended within 6 s"]):
        if restart == 1:
            user.release(job)
            user.wait_for_event("stuck", "started", 2)
            wait_for(lambda: "Starting training" in user.log("stuck"), "training", 200)
            time.sleep(5 * PATIENCE)  # the line comes before the training listens to signals
        user.cluster.run("scancel", "--batch", "--signal=USR2", job)
        user.wait_for_event("stuck", "requeued", restart + 1)
        assert reason in user.events("stuck", "requeued")[restart]["reason"]


def test_time_limit_reached_twice(user: User, tmp_path: Path):
    go_on = tmp_path / "go_on"
    (job,) = user.submit(
        "limited",
        "train.max_iter=60",
        "dataloader.train.mapper.seconds=3",
        f"dataloader.train.mapper.until={go_on}",
        options=("--grace=120",),
    )
    for restart in (0, 1):
        user.wait_for_event("limited", "started", restart + 1)
        seen = len(user.iterations("limited"))
        wait_for(lambda seen=seen: len(user.iterations("limited")) > seen + 1, "progress", 300)
        # One to two minutes are left, and SLURM warns two minutes before the end.
        hours, minutes, _ = map(int, user.cluster.job(job)["RunTime"].split(":"))
        limit = 60 * hours + minutes + 2
        user.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
        user.wait_for_event("limited", "requeued", restart + 1)
        if restart == 1:
            go_on.touch()
        wait_for(lambda: user.cluster.job(job).get("JobState") == "PENDING", "requeue")
        user.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
        user.release(job)
    assert user.wait_until_ended("limited", job) == "COMPLETED"
    assert [event["restart"] for event in user.events("limited", "started")] == [0, 1, 2]
    assert [i for i in user.iterations("limited") if i < 60] == list(range(60))
    words = table(user, "limited")
    assert re.search(r"COMPLETED │ 2 │ 60 / 60 .* │ 2 │", words), words


def test_a_rank_that_raises_or_is_killed_ends_the_job_on_all_nodes(user: User, tmp_path: Path):
    places = ("model.train_accident", "model.test_accident", "dataloader.train.mapper.accident")
    accidents = [f"{place}={kind}" for place in places for kind in ("raise", "kill")]
    sweep = tmp_path / "sweep"
    sweep.write_text("\n".join(accidents))
    options = (f"--sweep={sweep}", "--max-parallel=3")
    jobs = user.submit("accidents", "train.max_iter=2", options=options)
    for job, accident in zip(jobs, accidents, strict=True):
        run = f"accidents/{accident.replace('=', '_')}"
        state = user.wait_until_ended(run, job)
        log = user.log(run)
        assert state == "FAILED", log[-3000:]
        about = user.cluster.job(job)
        end = datetime.fromisoformat(about["EndTime"]).timestamp()
        assert end - (user.output(run) / "slurm" / "accident").stat().st_mtime < 60 * PATIENCE
        assert not user.cluster.processes(f"SLURM_JOB_ID={about['JobId']}")
        assert about["Restarts"] == "0"
        assert "srun ended with status" in log
        assert not user.events(run, "requeued")
        told = table(user, run)
        if accident.startswith("model") and accident.endswith("kill"):
            assert "task 1: Killed" in told, told + log[-3000:]
            continue
        assert "FAILED" in told and "rank 1: " in told, told + log[-3000:]
        error = min(user.events(run, "failed"), key=lambda event: event["time"])["error"]
        assert ("disk is on fire" if accident.endswith("raise") else "SIGKILL") in error


def test_after_a_node_failure_jobs_go_on_with_fewer_nodes_or_are_held(user: User, tmp_path: Path):
    go_on = tmp_path / "go_on"
    # Many iterations: on a busy machine the second job begins late.
    overrides = ("train.max_iter=30", f"dataloader.train.mapper.until={go_on}")
    overrides += ("dataloader.train.mapper.seconds=3", "train.checkpointer.period=2")
    (fewer,) = user.submit("fewer", *overrides, options=("--min-nodes=1",))
    (held,) = user.submit("held", *overrides)
    try:
        for run in ("fewer", "held"):
            user.wait_for_iteration(run, 2)
        user.cluster.kill_node("wsbcn2")
        for run, job in (("fewer", fewer), ("held", held)):
            wait_for(
                lambda job=job: user.cluster.job(job).get("Restarts") == "1",
                f"requeue of {run}",
                150,
            )
        go_on.touch()
        user.release(fewer)
        # The other waits SLURM's two minutes. Before, a node that is back may still be told to end
        # the first start, and ends the second.
        assert user.wait_until_ended("fewer", fewer) == "COMPLETED", user.log("fewer")[-3000:]
        assert [e["tasks"] for e in user.events("fewer", "started")] == [2, 1]
        assert "Resuming at iteration" in user.log("fewer")
        assert user.cluster.job(held)["JobState"] == "PENDING"
        assert "PENDING" in table(user, "held")
    finally:
        user.cluster.start_node("wsbcn2")
    # It leaves the queue by itself when the node is back.
    assert user.wait_until_ended("held", held) == "COMPLETED"
    assert [e["tasks"] for e in user.events("held", "started")] == [2, 2]


def test_sweep_of_three_one_at_a_time_then_evaluations(user: User):
    jobs = user.submit(
        "sweep",
        "train.max_iter=2",
        options=(
            "--sweep=optimizer.lr=0.01,0.02,0.03",
            "--max-parallel=1",
            "--then-eval",
            "--nodes=1",
        ),
    )
    runs = [f"sweep/optimizer.lr_{lr}" for lr in ("0.01", "0.02", "0.03")]
    assert [job.partition("_")[2] for job in jobs] == ["0", "1", "2"] * 2
    for run, job in zip(runs, jobs[3:], strict=True):
        assert user.wait_until_ended(f"{run}/eval", job) == "COMPLETED"
    spans = [
        (user.events(run, "started")[0]["time"], user.events(run, "finished")[0]["time"])
        for run in runs
    ]
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))
    sums = {sum(float(t.double().sum()) for t in weights(user, run).values()) for run in runs}
    assert len(sums) == 3
    for run in runs:
        assert re.search(r"^0: bbox +\d", user.log(f"{run}/eval"), re.MULTILINE)
        after = user.events(f"{run}/eval", "started")[0]["time"]
        assert after > user.events(run, "finished")[0]["time"]


def test_two_jobs_of_projects_on_the_same_nodes_are_preempted(user: User, tmp_path: Path):
    go_on = tmp_path / "go_on"
    jobs = {}
    for project, recipe in (("classification", "classes"), ("semantic_segmentation", "maps")):
        script = f"--script=projects/{project}/train_net.py"
        (jobs[project],) = user.submit(
            project,
            "train.max_iter=60",
            "dataloader.train.mapper.seconds=2",
            f"dataloader.train.mapper.until={go_on}",
            options=(script, f"--config-file=tests/slurm/tiny_{recipe}.py"),
        )
    for project in jobs:
        user.wait_for_iteration(project, 1)
    for project, job in jobs.items():
        assert user.cluster.job(job)["JobState"] == "RUNNING"
        assert user.events(project, "started")[0]["nodes"] == "wsbcn[1-2]"
    for job in jobs.values():
        user.cluster.run("scancel", "--batch", "--signal=USR2", job)
    for project in jobs:
        user.wait_for_event(project, "requeued")
    go_on.touch()
    for job in jobs.values():
        user.release(job)
    for (project, job), metric in zip(jobs.items(), ("top1", "mIoU"), strict=True):
        state = user.wait_until_ended(project, job)
        assert state == "COMPLETED", user.log(project)[-3000:]
        # Each iteration once: the second part begins where the first has stopped.
        assert [i for i in user.iterations(project) if i < 60] == list(range(60))
        words = table(user, project)
        assert re.search(rf"COMPLETED │ 2 │ 60 / 60 .*/{metric} \d+\.\d .* 1 │", words), words


@pytest.mark.parametrize(
    ("options", "overrides", "message"),
    [
        (("--partition=nowhere",), (), "invalid partition specified: nowhere"),
        (("--nodes=5",), (), "partitions: main"),
        (("--mem=9999G",), (), "Requested node configuration is not available"),
        ((), ("train.output_dir=/proc/nowhere",), "output folder /proc/nowhere cannot be written"),
        ((), ("dataloader.train.total_batch_size=5",), "total_batch_size (5) must be"),
    ],
    ids=["partition", "nodes", "memory", "output folder", "batch"],
)
def test_mistakes_are_one_line_and_submit_nothing(
    user: User, options: tuple[str, ...], overrides: tuple[str, ...], message: str
):
    if "--nodes=5" in options:
        overrides = ("dataloader.train.total_batch_size=5",)
    done = user.try_to_submit("mistake", *overrides, options=options)
    assert done.returncode == 1
    assert done.stderr.startswith("submit.py: error") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not user.cluster.run("squeue", "-h")
    assert not user.output("mistake").exists()


def test_cancelled_jobs_stay_cancelled(user: User):
    # scancel's SIGTERM stops the training in good order, as a preemption's would.
    slow = ("train.max_iter=1000", "dataloader.train.mapper.seconds=1")
    (job,) = user.submit("cancelled", *slow, "train.stop_signals=[SIGUSR2,SIGTERM]")
    user.wait_for_iteration("cancelled", 1)
    again = user.try_to_submit("cancelled")
    assert again.returncode == 1
    assert f"job {job} is still in the queue" in again.stderr
    done = user.command("cancel", str(user.output("cancelled")))
    assert done.returncode == 0, done.stderr
    assert user.wait_until_ended("cancelled", job) == "CANCELLED"
    assert "CANCELLED" in table(user, "cancelled")
    assert not user.events("cancelled", "requeued")
    shutil.rmtree(user.output("cancelled"))
