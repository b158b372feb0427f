"""How runs are: a table from their folders and squeue, with sacct or without."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wsbcn_d2.errors import exit_with_message

from .job_states import QueuedJob, finished, queue
from .run_folder import RunFolder

__all__ = ["main", "read_status"]

EPILOG = """
examples:
  $ python slurm/status.py output/*
  $ python slurm/status.py --watch 30 output/a output/b
"""

_NUMBERS = ("nodes", "iteration", "ETA", "images/s", "result", "restarts")
_COLUMNS = ("run", "job", "state", *_NUMBERS, "last error")
# What SLURM writes to a job's log when it ends it.
_ENDS = {
    "TIMEOUT": r"DUE TO TIME LIMIT",
    "PREEMPTED": r"DUE TO PREEMPTION",
    "NODE_FAIL": r"DUE TO NODE FAILURE",
    "OUT_OF_MEMORY": r"(?i)oom[-_ ]kill|Out Of Memory",
    "CANCELLED": r"error: \*\*\* JOB .* CANCELLED",  # not STEP: srun ends it when a process fails
}
# What a process prints that cannot even begin; and what SLURM says of one that was killed.
_ERROR = re.compile(
    r"^ *\d+: (\w+(?:\.\w+)*(?:Error|Exception)\b.*)|^(?:srun|slurmstepd): error: (.*)", re.M
)
_TAIL = 200_000  # bytes
# Of a submission by an earlier version, which did not note them.
_UNKNOWN: dict[str, Any] = {"nodes": "–", "max_iter": 0, "images": 0, "metric": ""}


def read_status(
    run: RunFolder, queued: dict[str, QueuedJob], ended: dict[str, str]
) -> dict[str, str]:
    """The line of a run in the table, by its columns.

    Args:
        run: its folder.
        queued: of `queue`, for its jobs at least.
        ended: of `finished`.
    """
    events = run.events()
    about = _UNKNOWN | [event for event in events if event["event"] == "submitted"][-1]
    job = about["job"]
    events = [event for event in events if event["job"] == job]
    log = re.split(r"^=== job .* on .*$", _tail(run.log), flags=re.M)[-1]  # since the last start
    metrics = _last_metrics(run.output_dir / "metrics.json")
    state = _state(job, events, queued, ended, log)
    line = dict.fromkeys(_COLUMNS, "–")
    line |= {
        "run": run.output_dir.name,
        "job": job,
        "state": state,
        "nodes": str(queued[job].nodes if job in queued else about["nodes"]),
        "restarts": str(max((event["restart"] for event in events), default=0)),
        "last error": _error(events, log, state),
    }
    if about["max_iter"]:
        # The evaluation after the last iteration counts as one more.
        done = min(metrics["iteration"] + 1, about["max_iter"]) if "iteration" in metrics else "–"
        line["iteration"] = f"{done} / {about['max_iter']}"
    if state == "RUNNING" and "eta_seconds" in metrics:
        line["ETA"] = str(timedelta(seconds=round(metrics["eta_seconds"])))
    if state == "RUNNING" and metrics.get("time"):
        line["images/s"] = f"{about['images'] / metrics['time']:.1f}"
    results = [name for name in metrics if name.rpartition("/")[2] == about["metric"]]
    if results:
        line["result"] = ", ".join(f"{name} {metrics[name]:.1f}" for name in results)
    return line


def _state(
    job: str,
    events: Sequence[dict[str, Any]],
    queued: dict[str, QueuedJob],
    ended: dict[str, str],
    log: str,
) -> str:
    if job in queued:
        entry = queued[job]
        reason = f" ({entry.reason.strip('()')})" if entry.state == "PENDING" else ""
        return entry.state + reason
    kinds = [event["event"] for event in events]
    # The job's own word first: SLURM's accounting may be a minute behind, or not be there.
    last = next((k for k in reversed(kinds) if k in ("finished", "failed", "started")), "")
    if "cancelled" in kinds:
        return "CANCELLED"
    if last in ("finished", "failed"):
        return "COMPLETED" if last == "finished" else "FAILED"
    found = (state for state, pattern in _ENDS.items() if re.search(pattern, log))
    never = "" if last else " (never started)"
    return ended.get(job) or next(found, f"FAILED{never}")


def _error(events: Sequence[dict[str, Any]], log: str, state: str) -> str:
    """The first error of the last start: others may follow from it."""
    if state.startswith(("RUNNING", "PENDING", "COMPLETED")):
        return ""
    last = max((event["restart"] for event in events), default=0)
    failed = [e for e in events if e["event"] == "failed" and e["restart"] == last]
    if failed:
        first = min(failed, key=lambda event: event["time"])
        return f"rank {first['rank']}: {first['error']}"
    match = _ERROR.search(log)
    return (match[1] or match[2]) if match else ""


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last value of each metric in a metrics.json."""
    merged: dict[str, Any] = {}
    for line in _tail(path).splitlines():
        try:
            merged.update(json.loads(line))
        except ValueError:
            continue  # cut off at the beginning, or just being written
    return merged


def _make_table(folders: Sequence[str]) -> Table:
    """The table of the runs in the folders, or one level or two below."""
    patterns = ("slurm", "*/slurm", "*/*/slurm")
    paths = [path for f in folders for p in patterns for path in sorted(Path(f).glob(p))]
    runs = {run.output_dir: run for run in (RunFolder(path.parent) for path in paths)}
    found = [run for run in runs.values() if run.jobs()]
    jobs = [run.jobs()[-1] for run in found]
    queued = queue(jobs)
    ended = finished([job for job in jobs if job not in queued])
    table = Table()
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for run in found:
        table.add_row(*read_status(run, queued, ended).values())
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, once or, with ``--watch``, until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", default=["output"], help="default: output")
    parser.add_argument(
        "--watch", type=float, metavar="SECONDS", help="refresh every so many seconds, until Ctrl-C"
    )
    args = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        # A pipe or file has no width; 80 would cut the error lines up.
        console = Console(width=200)
    with exit_with_message("status.py"):
        while True:
            table = _make_table(args.folders)
            if args.watch is not None:
                console.clear()
            console.print(table)
            if args.watch is None:
                return
            time.sleep(args.watch)
