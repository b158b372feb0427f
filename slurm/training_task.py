"""What each process of a job does: submitit unpickles this on the nodes, from the snapshot."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from run_folder import RunFolder
from submitit import JobEnvironment
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

__all__ = ["TrainingTask"]

logger = logging.getLogger(__name__)

# Of the grace period, how much may pass before the job is requeued from its last checkpoint.
_LAST_CALL = 0.75


@dataclass
class TrainingTask:
    """train_net.py in one process of a job, and the job's requeueing when it is told to stop.

    On SIGUSR2 (submitit's signal for a time limit or preemption that is near) the training saves a
    checkpoint after the current step and stops; rank 0 then requeues the job, and the restarted
    one resumes. Outside of the training, and when no step has ended in three quarters of the grace
    period, it is requeued at once and goes on from the last checkpoint that there is.

    Args:
        output_dir: the run's.
        config_file, opts, resume, eval_only: as for train_net.py.
        working_directory: where relative paths begin.
        max_requeues: bound on restarts; then the job fails.
        grace: seconds between the signal and the end.
        rendezvous_timeout: seconds within which the processes must have met.
    """

    output_dir: str
    config_file: str
    opts: list[str] = field(default_factory=list)
    resume: bool = False
    eval_only: bool = False
    working_directory: str = "."
    max_requeues: int = 20
    grace: int = 300
    rendezvous_timeout: int = 300

    def __call__(self) -> None:
        """Meet the other processes, and train or evaluate."""
        os.chdir(self.working_directory)
        attempt = _Attempt(self)
        if attempt.rank == 0:
            attempt.note("started", nodes=attempt.nodes, tasks=attempt.environment.num_tasks)
        try:
            attempt.handle_signals()
            self._train(attempt)
        except SystemExit as stop:
            if stop.code != _exit_stopped():
                raise
            attempt.requeue("stopped after a step")
        except Exception as error:
            if not _is_consequence(error):
                attempt.fail(error)
            raise
        if attempt.rank == 0:
            attempt.note("finished")

    def checkpoint(self) -> DelayedSubmission:
        """For submitit, should a signal come before `__call__` has its own handler."""
        return DelayedSubmission(self)

    def _train(self, attempt: _Attempt) -> None:
        # Inside: the plain functions of this module must not wait for torch.
        from rendezvous import export, meet

        environment = attempt.environment
        host = os.environ.get("MASTER_ADDR") or environment.hostnames[0]
        identity = f"{attempt.job}.{attempt.restart}"
        rank, timeout = environment.global_rank, self.rendezvous_timeout
        # Rank 0's is the server: it must live as long as the processes talk to each other.
        store = meet(rank, host, environment.raw_job_id, identity, timeout)
        world_size = environment.num_tasks
        local_size = world_size // environment.num_nodes
        export(store, host, rank, world_size, environment.local_rank, local_size)

        from wsbcn_d2.engine import argument_parser, run

        words = ["--config-file", self.config_file, "--num-gpus", str(local_size)]
        words += ["--resume"] if self.resume or attempt.restart > 0 else []
        words += ["--eval-only"] if self.eval_only else []
        run(argument_parser().parse_args([*words, *self.opts]))
        del store


class _Attempt:
    """One start of the job, seen from one of its processes."""

    def __init__(self, task: TrainingTask) -> None:
        self.environment = JobEnvironment()
        self.rank = self.environment.global_rank
        self.job = self.environment.job_id
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.nodes = os.environ.get("SLURM_JOB_NODELIST", socket.gethostname())
        self._task = task
        self._folder = RunFolder(task.output_dir)
        self._pid = os.getpid()
        self._ending = threading.Lock()

    def note(self, event: str, **details: Any) -> None:
        self._folder.note(event, self.job, self.restart, **details)

    def fail(self, error: Exception) -> None:
        """Leave word that a process raised: this is no job to be started again."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        self.note("failed", rank=self.rank, node=socket.gethostname(), error=text)
        self._folder.failed.write_text(f"{self.job} {self.restart}\n")

    def handle_signals(self) -> None:
        """Be told of the coming end in any case; the training's own handler replaces this one."""
        signum = self.environment._usr_sig()
        signal.signal(signum, self._stop_outside_training)
        if self.rank != 0:
            return
        # Python writes the numbers of signals there whoever handles them, and while the main
        # thread is inside a collective.
        reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._await_last_call, args=(reader, signum), daemon=True).start()

    def _stop_outside_training(self, signum: int, _: Any) -> None:
        # Data loader workers inherit this handler.
        if self.rank == 0 and os.getpid() == self._pid:
            self.requeue("stopped outside of the training")

    def _await_last_call(self, reader: socket.socket, signum: int) -> None:
        while signum not in reader.recv(64):
            pass
        seconds = _LAST_CALL * self._task.grace
        logger.warning("%s: to stop within %.0f seconds", signal.Signals(signum).name, seconds)
        time.sleep(seconds)
        try:
            self.requeue(f"no step has ended within {seconds:.0f} seconds")
        except BaseException as error:
            print(f"not requeued: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    def requeue(self, reason: str) -> NoReturn:
        """Have the job started again, and leave. Ranks but 0 only leave.

        Raises:
            UncompletedJobError: it was restarted too often.
        """
        if self.rank != 0:
            sys.exit(0)
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # the other thread is at it
            sys.exit(0)
        if self.restart >= self._task.max_requeues:
            message = (
                f"not requeued: restarted {self.restart} times, max_requeues is "
                f"{self._task.max_requeues}; submit.py --resume goes on from the last checkpoint"
            )
            self.note("failed", rank=0, node=socket.gethostname(), error=message)
            self._folder.failed.write_text(f"{self.job} {self.restart}\n")
            raise UncompletedJobError(message)
        if _is_cancelled(self.environment):
            self.note("cancelled")
            sys.exit(0)
        self.note("requeued", reason=reason)
        sys.stdout.flush()
        # Local ones exit with a status that says so.
        self.environment._requeue(self._task.max_requeues - self.restart - 1)
        if threading.current_thread() is threading.main_thread():
            sys.exit(0)
        os._exit(0)


def _is_cancelled(environment: JobEnvironment) -> bool:
    """Whether somebody ended the job: scontrol would requeue it all the same."""
    if environment.name() != "slurm":
        return False
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={environment.job_id}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.stdout.strip() in ("CANCELLED", "COMPLETING")


def _is_consequence(error: BaseException) -> bool:
    """Whether ``error`` only says that another process is gone."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    pattern = r"\bgloo\b|\bNCCL\b|Connection (closed|reset) by peer|Broken pipe"
    return isinstance(error, RuntimeError) and re.search(pattern, str(error)) is not None


def _exit_stopped() -> int:
    from wsbcn_d2.engine.preemption import EXIT_STOPPED

    return EXIT_STOPPED
