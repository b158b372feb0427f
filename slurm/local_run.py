"""A job's processes on this machine, without SLURM: the same task, logs and requeueing."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cluster_profile import Profile
from run_folder import RunFolder
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE
from training_task import TrainingTask

__all__ = ["run_here"]


def run_here(
    task: TrainingTask, run: RunFolder, folder: Path, code: Path, profile: Profile
) -> None:
    """Run a task's processes to the end, through restarts; what they print is printed too.

    SIGUSR2 and SIGTERM to this process reach them: the first stops them after a step and has them
    started again, the second ends them, as Ctrl-C does.

    Args:
        task: pickled to ``folder``.
        run: where the logs go.
        folder: submitit's.
        code: the snapshot.
        profile: number of processes, environment.

    Raises:
        SystemExit: with the status of the process that failed first.
    """
    job = f"local-{uuid.uuid4().hex[:8]}"
    pickle = JobPaths(folder, job).submitted_pickle
    DelayedSubmission(task).dump(pickle)
    run.note("submitted", job, local=True)
    with open(run.log, "ab", buffering=0) as log:
        for restart in range(profile.max_requeues + 1):
            status = _attempt(job, restart, run, folder, code, profile, log)
            if status != LOCAL_REQUEUE_RETURN_CODE:
                break
    if status != 0:
        sys.exit(status if status > 0 else 128 - status)


def _attempt(
    job: str,
    restart: int,
    run: RunFolder,
    folder: Path,
    code: Path,
    profile: Profile,
    log: BinaryIO,
) -> int:
    """Start all processes once; returns the first exit status that is not 0."""
    python = shlex.split(profile.python) if profile.python else [sys.executable]
    command = [*python, "-u", "-m", "submitit.core._submit", str(folder)]
    processes: list[subprocess.Popen[bytes]] = []
    threads: list[threading.Thread] = []
    lock = threading.Lock()
    with _forwarding(processes):
        for rank in range(profile.tasks):
            process = subprocess.Popen(
                command,
                cwd=code / "slurm",
                env={**os.environ, **profile.env, **_variables(job, restart, rank, profile, code)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            processes.append(process)
            arguments = (process, rank, run, log, lock)
            threads.append(threading.Thread(target=_copy, args=arguments, daemon=True))
            threads[-1].start()
        failed = _wait(processes)
        for thread in threads:
            thread.join(10)
    return failed


def _variables(job: str, restart: int, rank: int, profile: Profile, code: Path) -> dict[str, str]:
    paths = [str(code), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": job,
        "SUBMITIT_LOCAL_NTASKS": str(profile.tasks),
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_GLOBALID": str(rank),
        "SUBMITIT_LOCAL_LOCALID": str(rank),
        "SLURM_RESTART_COUNT": str(restart),
        # Whatever this machine's name resolves to.
        "MASTER_ADDR": "127.0.0.1",
    }


def _copy(
    process: subprocess.Popen[bytes],
    rank: int,
    run: RunFolder,
    log: BinaryIO,
    lock: threading.Lock,
) -> None:
    """As srun's labels and split_log.py do it."""
    assert process.stdout is not None
    with open(run.folder / f"rank_{rank}.txt", "ab", buffering=0) as own:
        for line in process.stdout:
            own.write(line)
            with lock:
                labelled = b"%d: %s" % (rank, line)
                log.write(labelled)
                sys.stdout.buffer.write(labelled)
                sys.stdout.flush()


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    """Until all have ended; when one fails, the others are stopped."""
    failed = 0
    running = list(processes)
    while running:
        for process in list(running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(0.2)
                running.remove(process)
                if status != 0 and failed == 0:
                    failed = status
                    for other in running:
                        other.kill()
    return failed


@contextlib.contextmanager
def _forwarding(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    def forward(signum: int, _: object) -> None:
        for process in processes:
            # submitit has the processes ignore SIGTERM.
            process.send_signal(signal.SIGKILL if signum == signal.SIGTERM else signum)

    numbers = (signal.SIGUSR2, signal.SIGTERM)
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)
