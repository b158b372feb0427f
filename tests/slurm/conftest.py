"""The cluster that the tests of a session share, and a user of it."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.slurm.cluster import Cluster, missing, wait_for

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "tests/slurm/tiny_digits.py"


class User:
    """Somebody at the cluster, with a folder."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.environment = {**cluster.environment, "PYTHONPATH": str(ROOT)}

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a script of slurm/ in the checkout."""
        return subprocess.run(
            [sys.executable, str(ROOT / "slurm" / f"{name}.py"), *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Do what `script` does, without another start of Python: the imports take seconds."""
        main = importlib.import_module(f"wsbcn_slurm.{name}").main
        out, status, message = io.StringIO(), 0, ""
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, self.environment, clear=True))
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(contextlib.redirect_stdout(out))
            try:
                main(arguments)
            except SystemExit as end:
                status, message = 1, str(end)
        return subprocess.CompletedProcess(name, status, out.getvalue(), message)

    def try_to_submit(
        self, run: str, *arguments: str, options: tuple[str, ...] = (), by_script: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Submit the tiny recipe to 2 nodes, one process each; options replace these."""
        resources = ("--nodes=2", "--tasks-per-node=1", "--cpus-per-task=1", "--time=30")
        output = () if any("output_dir" in x for x in arguments) else (f"{self.output(run)}",)
        return (self.script if by_script else self.command)(
            "submit",
            *resources,
            f"--config-file={RECIPE}",
            *options,
            *(f"train.output_dir={folder}" for folder in output),
            *arguments,
        )

    def submit(
        self, run: str, *arguments: str, options: tuple[str, ...] = (), by_script: bool = False
    ) -> list[str]:
        """The ids of the jobs that were submitted."""
        done = self.try_to_submit(run, *arguments, options=options, by_script=by_script)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"Submitted job (\S+):", done.stdout)

    def output(self, run: str) -> Path:
        return self.folder / run

    def log(self, run: str) -> str:
        path = self.output(run) / "slurm" / "log.txt"
        # As bytes: a progress bar's carriage returns end no line.
        return path.read_bytes().decode(errors="replace") if path.exists() else ""

    def events(self, run: str, kind: str = "") -> list[dict[str, Any]]:
        path = self.output(run) / "slurm" / "events.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()]
        return [event for event in events if kind in ("", event["event"])]

    def iterations(self, run: str) -> list[int]:
        """Of all lines in metrics.json."""
        path = self.output(run) / "metrics.json"
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        return [json.loads(line)["iteration"] for line in lines if line.endswith("}")]

    def wait_for_iteration(self, run: str, iteration: int) -> None:
        try:
            wait_for(
                lambda: max(self.iterations(run), default=-1) >= iteration,
                f"iteration {iteration} of {run}",
                timeout=400,
            )
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log(run)[-3000:]}") from None

    def wait_for_event(self, run: str, kind: str, count: int = 1, timeout: float = 300) -> None:
        try:
            wait_for(
                lambda: len(self.events(run, kind)) >= count,
                f"event {kind} ({count}) of {run}",
                timeout,
            )
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log(run)[-3000:]}") from None

    def release(self, job: str) -> None:
        """Start a requeued job soon, not after SLURM's two minutes."""
        wait_for(lambda: self.cluster.job(job).get("JobState") == "PENDING", f"{job} requeued")
        time.sleep(4)  # a node that still clears the last start away refuses the next one
        self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait_until_ended(self, run: str, job: str, timeout: float = 400) -> str:
        """The state that the job ends in."""

        def ended() -> bool:
            return self.cluster.job(job).get("JobState") not in ("PENDING", "RUNNING", "COMPLETING")

        try:
            wait_for(ended, f"end of job {job}", timeout)
        except TimeoutError as error:
            state = self.cluster.run("squeue", "-l")
            raise AssertionError(f"{error}\n{state}\n{self.log(run)[-3000:]}") from None
        return self.cluster.job(job)["JobState"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = missing()
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    it = Cluster()
    try:
        it.start()
        yield it
    finally:
        it.stop()


@pytest.fixture(scope="session")
def user(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(cluster, tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def _empty_queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves no jobs to the next one."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").cancel_all()
