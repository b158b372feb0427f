"""Run a job on this machine, without SLURM, with submitit's local executor."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import submitit

from wsbcn_d2.errors import UserError

from .profile import Profile
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .task import TrainingTask

__all__ = ["run_here"]


def run_here(
    task: TrainingTask, run: RunFolder, folder: Path, code: Path, profile: Profile
) -> None:
    """Run a task to its end, and print what it prints.

    The task starts its processes as train_net.py does.

    Args:
        task: what to run.
        run: the folder of its record.
        folder: submitit's.
        code: the copy of the code.
        profile: number of processes, environment, time limit.

    Raises:
        UserError: it failed.
    """
    job_name = f"local-{uuid.uuid4().hex[:8]}"
    attempt = run.folder / f"attempt_{job_name}.0"
    attempt.mkdir()
    paths = [f"{code}/slurm", str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(profile.env, PYTHONPATH=os.pathsep.join(paths), WSBCN_ATTEMPT=str(attempt))
    os.chdir(code)  # the first folder that `python -m` imports from
    executor = submitit.LocalExecutor(folder, python=profile.python)
    executor.update_parameters(
        timeout_min=profile.minutes,
        signal_delay_s=profile.grace,
        gpus_per_node=profile.gpus_per_node,
        stderr_to_stdout=True,
    )
    run.note("submitted", job_name)
    run.note("started", job_name)
    # Ctrl-C, which reaches the executor's processes even if this one was started in the background.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    job = executor.submit(task)
    try:
        _print_output(job, run.log)
        if job.exception() is not None:
            raise UserError(f"{run.output_dir}: failed; {run.log} has its output")
        if (attempt / "stopped").exists():
            raise UserError(f"{run.output_dir}: stopped on a signal; --resume goes on")
    finally:
        job.cancel()
        shutil.rmtree(attempt)
    run.note("finished", job_name)


def _print_output(job: submitit.Job[None], log: Path) -> None:
    """Copy a job's output to standard output and to a log, until it ends."""
    job.paths.stdout.touch()
    with open(job.paths.stdout, "rb") as source, open(log, "ab") as copy:
        done = False
        while not done:
            done = job.done()
            text = source.read()
            for target in (copy, sys.stdout.buffer):
                target.write(text)
                target.flush()
            time.sleep(0.2)
