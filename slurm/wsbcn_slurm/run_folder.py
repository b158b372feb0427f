"""What a run leaves in its folder about its jobs, for people and for status.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

__all__ = ["RunFolder"]


class RunFolder:
    """The folder ``slurm`` in a run's output folder.

    - ``log.txt``: what all processes printed, each line behind its rank;
      ``rank_<r>.txt``: what one did.
    - ``events.jsonl``: what happened to its jobs.
    - ``attempt_<job>.<restart>``: where the processes of one start of a job leave word for each
      other; it is there as long as they are.
    - ``1``, ``2``, …: one folder for each submission, with the resolved config, the command, the
      commit and what differs from it, the environment, the code, and submitit's files.

    Args:
        output_dir: the run's output folder.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir).absolute()
        self.folder = self.output_dir / "slurm"
        self.log = self.folder / "log.txt"

    def next_submission(self) -> Path:
        """The folder of a new submission, which is not there yet."""
        numbers = [int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdigit()]
        return self.folder / str(max(numbers, default=0) + 1)

    def note(self, event: str, job: str, restart: int = 0, **details: Any) -> None:
        """Append a line to the events, in one write, because other processes may append too.

        Args:
            event: ``submitted``, ``started``, ``requeued``, ``failed``, ``finished``,
                ``cancelled``. job.sh notes some of them.
            job: id of the job.
            restart: how often the job was started before.
            details: further fields.
        """
        entry = {"time": round(time.time(), 3), "event": event, "job": job, "restart": restart}
        with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, **details}) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """All events, in order; none where there is no file."""
        try:
            lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def jobs(self) -> list[str]:
        """Ids of the jobs that were submitted, the last one last."""
        return [event["job"] for event in self.events() if event["event"] == "submitted"]
