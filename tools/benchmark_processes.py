"""Time one recipe's optimizer step on different numbers of processes, with the same batch.

Each layout P × A × I (processes, accumulated micro-batches, images of a micro-batch) trains the
recipe for some steps with train_net.py; the layouts take turns. A time is the median step of a run,
without its first steps; the table has the median run, and the fastest and slowest in brackets.
Memory is the largest process's peak, in the whole run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Layout", "main", "parse_layout", "train"]

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 20


class Layout(NamedTuple):
    """How a batch of ``processes * accumulated * images`` is carried out."""

    processes: int
    accumulated: int
    images: int

    @property
    def batch(self) -> int:
        return self.processes * self.accumulated * self.images


def parse_layout(text: str) -> Layout:
    """``"2x2x1"`` as 2 processes, 2 accumulated micro-batches, 1 image each.

    Raises:
        ValueError: it is something else.
    """
    words = text.split("x")
    if len(words) != 3 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(
            f"layout {text!r} must be PROCESSESxACCUMULATEDxIMAGES, positive numbers such as 2x2x1"
        )
    return Layout(*map(int, words))


def train(
    config_file: str, layout: Layout, steps: int, overrides: Sequence[str]
) -> tuple[float, int]:
    """Seconds of the median step after the first ``WARM_UP``, and KiB of the largest process.

    Raises:
        RuntimeError: the training failed; the message ends with what it printed last.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, str(ROOT / "train_net.py"), "--config-file", config_file),
            *("--num-gpus", str(layout.processes), f"train.output_dir={folder}/run"),
            f"dataloader.train.total_batch_size={layout.batch}",
            *(f"train.images_per_gpu={layout.images}", f"train.max_iter={steps}"),
            *("train.log_period=1", "train.eval_period=0", *overrides),
        ]
        with open(f"{folder}/log.txt", "w+b") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                log.seek(0)
                end = log.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{end}")
        lines = Path(folder, "run", "metrics.json").read_text().splitlines()
        times = [step["time"] for step in map(json.loads, lines) if "time" in step]
    return statistics.median(times[WARM_UP:]), usage.ru_maxrss


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", default="configs/quick/mask_rcnn_r18_fpn_ws_gn.py", help="%(default)s")
    add("--layouts", nargs="+", default=["1x4x1", "2x2x1", "4x1x1", "1x1x4"], metavar="PxAxI",
        help="the first is the one to compare with (default: %(default)s)")  # fmt: skip
    add("--steps", type=int, default=60, help="of each run (default: %(default)s)")
    add("--rounds", type=int, default=3, help="runs of each layout (default: %(default)s)")
    add("overrides", nargs="*", help="train_net.py's")
    options = parser.parse_args(arguments)
    try:
        layouts = [parse_layout(text) for text in options.layouts]
        if options.steps <= WARM_UP or options.rounds < 1:
            raise ValueError(f"--steps must be over {WARM_UP}, --rounds positive")
        runs: dict[Layout, list[tuple[float, int]]] = {layout: [] for layout in layouts}
        for _ in range(options.rounds):
            for layout, found in runs.items():
                found.append(train(options.config_file, layout, options.steps, options.overrides))
    except (ValueError, RuntimeError) as error:
        print(f"benchmark_processes: {error}", file=sys.stderr)
        return 2
    print("| processes | accumulated | images at once | ms a step | images/s | ratio | peak, MiB |")
    print("|---" * 7 + "|")
    first = None
    for layout, found in runs.items():
        seconds = sorted(time for time, _ in found)
        rate = layout.batch / statistics.median(seconds)
        first = first or rate
        print(
            f"| {layout.processes} | {layout.accumulated} | {layout.images} "
            f"| {1e3 * statistics.median(seconds):.0f} "
            f"({1e3 * seconds[0]:.0f}–{1e3 * seconds[-1]:.0f}) | {rate:.1f} | {rate / first:.2f} "
            f"| {max(memory for _, memory in found) / 1024:.0f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
