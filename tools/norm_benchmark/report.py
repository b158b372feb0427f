"""Results as a table, a plot, JSON, and a part of a page of the documentation."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .measuring import Result

__all__ = ["describe", "describe_machine", "table", "write_report"]

_ROOT = Path(__file__).resolve().parents[2]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=_ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def describe_machine(options: argparse.Namespace) -> dict[str, str]:
    """What the times depend on: processor, GPU, versions, commit."""
    facts = {
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores, {options.threads} threads a process",
        "load": f"{os.getloadavg()[0]:.1f} at the start"
        if hasattr(os, "getloadavg")
        else "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    if options.device.type == "cuda":
        properties = torch.cuda.get_device_properties(options.device)
        facts["gpu"] = (
            f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
        facts["cuda"] = torch.version.cuda or "unknown"
    try:
        facts["triton"] = importlib.import_module("triton").__version__
    except ImportError:
        facts["triton"] = "not installed"
    return facts


def _ratio(result: Result, max_spread: float) -> str:
    if result.ratio is None or result.ratio_spread is None:
        return "–"
    if result.ratio_spread > max_spread * result.ratio:
        return "noisy"
    return f"{result.ratio:.2f} ± {result.ratio_spread / 2:.2f}"


def table(results: Sequence[Result], baseline: str, max_spread: float) -> str:
    """The results as a Markdown table: a row a contestant, training beside evaluation."""
    unit = "kept / baseline's" if results and results[0].suite == "models" else "kept / input"
    ratio = f"ratio to {baseline}"
    heads = ["case", "norm", "training, ms", ratio, "evaluation, ms", ratio, "of copy", unit]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    found = {(r.case, r.norm, r.work): r for r in results}
    for case, norm in dict.fromkeys((r.case, r.norm) for r in results):
        cells, shares, kept = [case, norm], [], "–"
        for work in ("train", "eval"):
            r = found.get((case, norm, work))
            if r is None or r.median_ms is None or r.quartiles_ms is None:
                cells += [r.note if r else "–", "–"]
                continue
            low, high = r.quartiles_ms
            cells += [f"{r.median_ms:.3g} ({low:.3g}–{high:.3g})", _ratio(r, max_spread)]
            if r.kept is not None:
                kept = f"{r.kept:.3f}" + (f" ({r.note})" if r.note else "")
            if r.share_of_copy is not None:
                shares.append(f"{100 * r.share_of_copy:.0f} %")
        cells += [", ".join(shares) or "–", kept]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plot(results: Sequence[Result], baseline: str, max_spread: float, path: Path) -> bool:
    """Whether there was a ratio to plot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [
        r
        for r in results
        if r.work in ("train", "eval")
        and r.ratio is not None
        and r.ratio_spread is not None
        and r.ratio_spread <= max_spread * r.ratio
    ]
    if not shown:
        path.unlink(missing_ok=True)
        return False
    labels = [f"{r.norm}, {r.work}, {r.case}" for r in shown]
    figure = Figure(figsize=(9, 1.2 + 0.24 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = ["tab:blue" if r.work == "train" else "tab:orange" for r in shown]
    axes.barh(
        range(len(shown)),
        [r.ratio or math.nan for r in shown],
        xerr=[(r.ratio_spread or 0) / 2 for r in shown],
        color=colors,
    )
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel(f"time, in units of {baseline}'s (bars' ends: the middle half of the rounds)")
    figure.savefig(path, dpi=110)
    return True


def write_report(
    folder: Path,
    name: str,
    results: Sequence[Result],
    machine: dict[str, str],
    command: str,
    baseline: str,
    max_spread: float,
) -> None:
    """Write ``name.json`` and ``name.png`` in ``folder``, and the table into ``folder``.md.

    The page beside the folder (docs/performance.md for docs/performance) gets the table between its
    lines ``<!-- benchmark: name -->`` and ``<!-- end -->``; without these it is left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "command": command,
        "machine": machine,
        "baseline": baseline,
        "max_spread": max_spread,
        "results": [r._asdict() for r in results],
    }
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plotted = _plot(results, baseline, max_spread, folder / f"{name}.png")
    page = folder.with_suffix(".md")
    start, end = f"<!-- benchmark: {name} -->\n", "<!-- end -->"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if start not in text:
        print(f"{page} has no line {start.strip()!r}: no table was put there", file=sys.stderr)
        return
    head, _, rest = text.partition(start)
    _, mark, tail = rest.partition(end)
    if not mark:
        raise ValueError(f"{page} has {start.strip()!r} but no {end!r} after it")
    body = f"\n`{command}`\n\n{describe(machine)}\n\n{table(results, baseline, max_spread)}\n" + (
        f"![{name}: times in units of {baseline}'s]({folder.name}/{name}.png)\n\n"
        if plotted
        else ""
    )
    page.write_text(head + start + body + mark + tail, encoding="utf-8")


def describe(machine: dict[str, str]) -> str:
    """The facts of `describe_machine` as a sentence."""
    return "; ".join(f"{key}: {value}" for key, value in machine.items()) + "."
