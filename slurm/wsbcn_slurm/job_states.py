"""What SLURM says about jobs: squeue for those in its queue, sacct for others, if there is one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["QueuedJob", "finished", "queue"]


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue. ``reason``: why it waits, or its nodes when it runs."""

    state: str
    nodes: int
    reason: str


def queue(jobs: Sequence[str]) -> dict[str, QueuedJob]:
    """Those of ``jobs`` that wait or run, by id; none where there is no SLURM."""
    parents = sorted({job.partition("_")[0] for job in jobs if job[:1].isdigit()})
    if not parents or shutil.which("squeue") is None:
        return {}
    # All of the user's: squeue refuses a list with an id that it has forgotten.
    lines = _output("squeue", "--noheader", "--array", "--format=%i|%T|%D|%R", "--me")
    found = {}
    for line in lines:
        job, state, nodes, reason = line.split("|", 3)
        if job in jobs and state not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"):
            found[job] = QueuedJob(state, int(nodes), reason)
    return found


def finished(jobs: Sequence[str]) -> dict[str, str]:
    """States of jobs from the accounting; none where there is no accounting."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    wanted = f"--jobs={','.join(jobs)}"
    lines = _output("sacct", "--noheader", "--parsable2", "-X", "--format=JobID,State", wanted)
    pairs = (line.split("|", 1) for line in lines if "|" in line)
    return {job: state.partition(" ")[0] for job, state in pairs}


def _output(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
