"""End the jobs of runs for good: nothing is requeued. Their checkpoints stay."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from .job_states import queue
from .run_folder import RunFolder

EPILOG = """
examples:
  $ python slurm/cancel.py output/a output/b
  $ python slurm/submit.py --resume --config-file … train.output_dir=output/a   # goes on with it
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Cancel what is in the queue for the folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="output folders of runs")
    args = parser.parse_args(arguments)
    runs = [RunFolder(folder) for folder in args.folders]
    for run in runs:
        if not run.jobs():
            sys.exit(f"cancel.py: error: {run.output_dir}: nothing was submitted there")
    for run in runs:
        jobs = list(queue(run.jobs()))
        if not jobs:
            print(f"{run.output_dir}: no job in the queue")
        for job in jobs:
            # Before the end, which rank 0 takes for a preemption otherwise.
            run.note("cancelled", job)
            done = subprocess.run(["scancel", job], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"cancel.py: error: scancel {job}: {done.stderr.strip()}")
            print(f"{run.output_dir}: cancelled job {job}")
