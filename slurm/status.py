"""How runs are: a table from their folders and squeue, with sacct or without."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from job_states import QueuedJob, finished, queue
from rich.console import Console
from rich.live import Live
from rich.table import Table
from run_folder import RunFolder

EPILOG = """
examples:
  $ python slurm/status.py output/*
  $ python slurm/status.py --watch 30 output/a output/b
"""

# What SLURM writes to a job's log when it ends it.
_ENDS = (
    ("TIMEOUT", re.compile(r"DUE TO TIME LIMIT")),
    ("PREEMPTED", re.compile(r"DUE TO PREEMPTION")),
    ("NODE_FAIL", re.compile(r"DUE TO NODE FAILURE")),
    ("OUT_OF_MEMORY", re.compile(r"oom[-_ ]kill|Out Of Memory", re.IGNORECASE)),
    ("CANCELLED", re.compile(r"error: \*\*\* (?:JOB|STEP) .* CANCELLED")),
)
_ERROR = re.compile(
    r"^ *\d+: (\w+(?:\.\w+)*(?:Error|Exception|Interrupt)\b.*)"
    r"|^(?:srun|slurmstepd): error: (.*)"
)
_TAIL = 200_000


@dataclass(frozen=True)
class Status:
    """One line of the table. None: not known, or not yet."""

    run: str
    job: str
    state: str
    nodes: int | None
    iteration: int | None
    max_iter: int | None
    eta: float | None
    images_per_second: float | None
    ap: float | None
    restarts: int
    error: str


def read_status(run: RunFolder, queued: dict[str, QueuedJob], ended: dict[str, str]) -> Status:
    """The state of a run.

    Args:
        run: its folder.
        queued: of `queue`, for its jobs at least.
        ended: of `finished`.
    """
    about = run.read_run()
    events = run.events()
    jobs = run.jobs(events)
    job = jobs[-1] if jobs else ""
    mine = [event for event in events if event["job"] == job]
    started = [event for event in mine if event["event"] == "started"]
    metrics = _last_metrics(run.output_dir / "metrics.json")
    state, detail = _state(run, job, mine, queued, ended)
    seconds = metrics.get("time")
    running = state == "RUNNING"
    return Status(
        run=run.output_dir.name,
        job=job,
        state=f"{state} ({detail})" if detail else state,
        nodes=queued[job].nodes if job in queued else about["nodes"],
        # The evaluation after the last iteration counts as one more.
        iteration=None
        if "iteration" not in metrics
        else min(int(metrics["iteration"]) + 1, about["max_iter"]),
        max_iter=about["max_iter"] or None,
        eta=metrics.get("eta_seconds") if running else None,
        images_per_second=about["images"] / seconds if running and seconds else None,
        ap=metrics.get("bbox/AP"),
        restarts=max((event["restart"] for event in mine), default=0) if started else 0,
        error=_error(run, mine, state),
    )


def _state(
    run: RunFolder,
    job: str,
    events: Sequence[dict[str, Any]],
    queued: dict[str, QueuedJob],
    ended: dict[str, str],
) -> tuple[str, str]:
    if not job:
        return "NOT SUBMITTED", ""
    if job in queued:
        entry = queued[job]
        return entry.state, entry.reason.strip("()") if entry.state == "PENDING" else ""
    kinds = [event["event"] for event in events]
    if "cancelled" in kinds:
        return "CANCELLED", ""
    # The job's own word first: SLURM's accounting may be a minute behind, or not be there.
    last = next((k for k in reversed(kinds) if k in ("finished", "failed", "started")), "")
    if last == "finished":
        return "COMPLETED", ""
    if last == "failed":
        return "FAILED", ""
    if job in ended:
        return ended[job], ""
    if job.startswith("local-"):
        return ("RUNNING" if last == "started" else "PENDING"), ""
    text = _tail(run.log)
    for state, pattern in _ENDS:
        if pattern.search(text):
            return state, ""
    return "FAILED", "" if last else "never started"


def _error(run: RunFolder, events: Sequence[dict[str, Any]], state: str) -> str:
    failed = [event for event in events if event["event"] == "failed"]
    if failed:
        # The first of the last attempt: the others may follow from it.
        last = [event for event in failed if event["restart"] == failed[-1]["restart"]]
        first = min(last, key=lambda event: event["time"])
        return f"rank {first['rank']}: {first['error']}"
    if state in ("RUNNING", "PENDING", "COMPLETED"):
        return ""
    found = ""
    for line in _tail(run.log).splitlines():
        match = _ERROR.match(line)
        if match:
            found = match[1] or match[2]
    return found


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


def make_table(statuses: Sequence[Status]) -> Table:
    """For rich."""
    table = Table()
    columns: list[tuple[str, Literal["left", "right"]]] = [
        ("run", "left"), ("job", "right"), ("state", "left"), ("nodes", "right"),
        ("iteration", "right"), ("ETA", "right"), ("images/s", "right"), ("box AP", "right"),
        ("restarts", "right"), ("last error", "left"),
    ]  # fmt: skip
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")
    for s in statuses:
        table.add_row(
            s.run,
            s.job,
            s.state,
            _text(s.nodes),
            f"{_text(s.iteration)} / {s.max_iter}" if s.max_iter else "–",
            "–" if s.eta is None else str(timedelta(seconds=round(s.eta))),
            "–" if s.images_per_second is None else f"{s.images_per_second:.1f}",
            "–" if s.ap is None else f"{s.ap:.1f}",
            str(s.restarts),
            s.error,
        )
    return table


def _text(value: int | None) -> str:
    return "–" if value is None else str(value)


def _find(folders: Sequence[str]) -> list[RunFolder]:
    """Runs in the folders, or one level or two below."""
    found = []
    for folder in folders:
        for pattern in ("slurm", "*/slurm", "*/*/slurm"):
            found += [RunFolder(path.parent) for path in sorted(Path(folder).glob(pattern))]
    unique = {run.output_dir: run for run in found if run.exists()}
    return list(unique.values())


def read_all(folders: Sequence[str]) -> list[Status]:
    """The states of all runs in the folders."""
    runs = _find(folders)
    jobs = [job for run in runs for job in run.jobs()[-1:]]
    queued = queue(jobs)
    ended = finished([job for job in jobs if job not in queued])
    return [read_status(run, queued, ended) for run in runs]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, once or again and again."""
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
    if args.watch is None:
        console.print(make_table(read_all(args.folders)))
        return
    with Live(make_table(read_all(args.folders)), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(args.watch)
                live.update(make_table(read_all(args.folders)), refresh=True)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
