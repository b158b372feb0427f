"""Show on one NVIDIA GPU, within eight minutes, what no CPU can; `make test-gpu` runs it.

Each part is a command with a time limit of its own, and the others go on when it fails. The parts
whose results are right or wrong run together; those that measure time run alone, after them. The
summary, logs, JSON and plots go to ``output/gpu``; ``--write-docs`` puts those of the last run into
docs/performance.md. With ``--device cpu`` every part is shrunk: a rehearsal, for machines without a
GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["Part", "Result", "main", "parts", "run_part", "summary_table", "write_docs"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
QUICK = "configs/quick/mask_rcnn_r18_fpn_ws_gn.py"
# Of the quick recipe's main job: box and mask AP50.
TARGETS = {"bbox/AP50": 75.0, "segm/AP50": 70.0}


class Part(NamedTuple):
    """One command of the proof.

    Attributes:
        name: of its log file.
        shows: what it shows, for the summary.
        limit: seconds until it is stopped.
        command: arguments behind the interpreter.
        read: what to say of a run that ended well, from its output; raises ValueError where the
            output says that it did not.
        alone: whether nothing else may run meanwhile, as it measures time.
    """

    name: str
    shows: str
    limit: int
    command: list[str]
    read: Callable[[str], str]
    alone: bool = False


class Result(NamedTuple):
    """How a part ended: "passed", "failed" or "stopped" (at its limit)."""

    name: str
    shows: str
    outcome: str
    seconds: float
    said: str
    command: str


def _read_pytest(output: str) -> str:
    counts = re.findall(r"^=*\s*((?:\d+ \w+,? ?)+in [\d.:]+s.*?)\s*=*$", output, re.MULTILINE)
    if not counts or " passed" not in counts[-1]:
        raise ValueError("no test passed")
    return counts[-1].partition(" in ")[0]


def _read_table(output: str) -> str:
    """Ratios to the baseline in training, by norm: the range over the cases of all tables."""
    ratios: dict[str, list[float]] = {}
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found = re.match(r"[\d.]+", cells[3]) if line.startswith("|") and len(cells) > 3 else None
        if found is not None:
            ratios.setdefault(cells[1], []).append(float(found.group()))
    if "| case |" not in output:
        raise ValueError("no table was printed")
    return ", ".join(f"{n} {min(r):.2f}–{max(r):.2f}" for n, r in ratios.items()) or "all noisy"


class _ReadAP:
    """Reads the last evaluation of a run's metrics.json, and holds it against `TARGETS`."""

    def __init__(self, folder: Path, check: bool) -> None:
        self.folder = folder
        self.check = check

    def __call__(self, output: str) -> str:
        lines = (self.folder / "metrics.json").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if "bbox/AP50" in row]
        if not rows:
            raise ValueError("no evaluation in metrics.json")
        said = ", ".join(f"{key} {rows[-1][key]:.1f}" for key in TARGETS)
        missed = [f"{key} {goal}" for key, goal in TARGETS.items() if rows[-1][key] < goal]
        if self.check and missed:
            raise ValueError(f"{said}: below {' and '.join(missed)}")
        return said


def parts(device: str, output: Path) -> list[Part]:
    """The parts, for ``"cuda"`` or, shrunk, for ``"cpu"``."""
    gpu = device == "cuda"
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
    bench = ["tools/benchmark_norms.py"]
    write = ["--device", device, "--write", str(output / "performance")]
    found = [
        Part(
            "cuda_tests",
            "the tests that need CUDA",
            200,
            [*pytest, "tests/norms", "tests/modeling", "tests/engine", "-k", "cuda or triton"]
            if gpu
            else [*pytest, "tests/modeling", "-k", "registry"],
            _read_pytest,
        ),
        Part(
            "step",
            "kernels against float64, launches a layer, CUDA graph, NCCL",
            200,
            [*pytest, "tests/gpu", f"--junitxml={output / 'step.xml'}"],
            _read_pytest,
        ),
    ]
    for dtype in ("float32", "bfloat16", "float16"):
        folder = output / f"quick_{dtype}"
        short = [] if gpu else ["train.max_iter=3", "train.eval_period=0"]
        amp = [f"train.amp.enabled={dtype != 'float32'}"]
        amp += [] if dtype == "float32" else [f"train.amp.dtype={dtype}"]
        found.append(
            Part(
                f"quick_{dtype}",
                f"the quick job in {dtype} to its AP",
                300,
                ["train_net.py", "--config-file", QUICK, "--num-gpus=1", f"train.device={device}"]
                + [f"train.output_dir={folder}", *amp, *short],
                _ReadAP(folder, check=gpu),
            )
        )
    norms = ["--norms", "GN", "WS+GN", "SN", "SyncSN", "BCN"]
    small = ["--model", "mask_rcnn_r18_fpn", "--image-size", "64", "96", "--rounds", "1"]
    for images in ("1", "2"):
        sized = [] if gpu else small
        found.append(
            Part(
                f"models_{images}",
                f"steps of Mask R-CNN R-50-FPN, images a GPU: {images}",
                90,
                [*bench, "models", *norms, "--images", images, *write, *sized],
                _read_table,
                alone=True,
            )
        )
    tiny = [] if gpu else ["--shapes", "1x64x8x8", "--rounds", "3"]
    for suite, limit in (("layers", 120), ("convs", 60)):
        found.append(
            Part(
                suite,
                f"{suite}, two types and both memory formats",
                limit,
                [*bench, suite, "--sweep", *write, *tiny],
                _read_table,
                alone=True,
            )
        )
    return found


def run_part(part: Part, output: Path, environment: dict[str, str]) -> Result:
    """Run one part to its end or its limit; never raises for what it does."""
    command = [sys.executable, *part.command]
    log = output / f"{part.name}.log"
    print(f"  {part.name}: {part.shows} ({part.limit} s at most) ...", flush=True)
    start = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            outcome = "passed" if process.wait(part.limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "stopped"
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.monotonic() - start
    text = log.read_text(encoding="utf-8", errors="replace")
    said = f"see {log}"
    if outcome == "passed":
        try:
            said = part.read(text)
        except (ValueError, OSError) as error:
            outcome, said = "failed", str(error)
    shown = " ".join(["python", *part.command])
    print(f"  {part.name}: {outcome} in {seconds:.0f} s; {said}", flush=True)
    return Result(part.name, part.shows, outcome, seconds, said, shown)


def summary_table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| part | result | seconds | |", "|---|---|---|---|"]
    lines += [f"| {r.shows} | {r.outcome} | {r.seconds:.0f} | {r.said} |" for r in results]
    return "\n".join(lines) + "\n"


def _launches(report: Path) -> str:
    """The launches that tests/gpu/test_launches.py counted, as a Markdown table."""
    text = report.read_text(encoding="utf-8") if report.exists() else ""
    found = re.findall(r'<property name="([^"]+)" value="([^"]+)"', text)
    rows = [f"| {name.replace('torch.', '')} | {value} |" for name, value in found]
    return "\n".join(["| layer, input | launches |", "|---|---|", *rows]) + "\n"


def _prepare_page(output: Path, device: str) -> None:
    """Write a page with a place for each table that the benchmarks write."""
    variants = ["", "_channels_last", "_bfloat16", "_bfloat16_channels_last"]
    names = ["models_1_image", "models"]
    names += [f"{suite}{variant}" for suite in ("layers", "convs") for variant in variants]
    page = output / "performance.md"
    places = [f"<!-- benchmark: {device}_{name} -->\n<!-- end -->\n" for name in names]
    page.write_text("\n".join(places), encoding="utf-8")


def _machine(device: str) -> str:
    probe = (
        "import torch, platform; print(f'Python {platform.python_version()}, torch "
        "{torch.__version__}, CUDA {torch.version.cuda}, ' + (torch.cuda.get_device_name() "
        f"if {device == 'cuda'} else 'CPU'))"
    )
    command = [sys.executable, "-c", probe]
    described = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return f"{described}, commit {commit.stdout.strip() or 'unknown'}"


def write_docs(output: Path, page: Path = PAGE) -> None:
    """Put the last run's summary, tables and plots into the page's GPU section.

    Raises:
        ValueError: there was no run on a GPU, or the page has no such section.
    """
    report = output / "summary.json"
    if not report.exists():
        raise ValueError(f"no {report}: run `make test-gpu` first")
    summary = json.loads(report.read_text(encoding="utf-8"))
    if summary["device"] != "cuda":
        raise ValueError(f"{report} is a rehearsal on the CPU; the page is for a GPU's figures")
    start, end = "<!-- gpu -->\n", "<!-- end gpu -->"
    head, mark, rest = page.read_text(encoding="utf-8").partition(start)
    _, end_mark, tail = rest.partition(end)
    if not mark or not end_mark:
        raise ValueError(f"{page} has no lines {start.strip()!r} and {end!r}")
    results = [Result(**result) for result in summary["parts"]]
    folder = page.with_suffix("")
    for file in sorted((output / "performance").glob("cuda_*")):
        shutil.copy(file, folder)
    tables = (output / "performance.md").read_text(encoding="utf-8")
    body = [f"`make test-gpu`; {summary['machine']}.\n", summary_table(results)]
    body += ["Kernels, copies and fills that a layer launches:\n", _launches(output / "step.xml")]
    text = "\n".join([*body, tables])
    page.write_text(f"{head}{start}\n{text}\n{end}{tail}", encoding="utf-8")
    print(f"wrote {page} and {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts; return 0 if every one passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "gpu")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts alone")
    parser.add_argument("--write-docs", action="store_true", help="write the last run into docs/")
    args = parser.parse_args(argv)
    output = args.output.absolute()
    if args.write_docs:
        try:
            write_docs(output)
        except ValueError as error:
            sys.exit(f"test_gpu: {error}")
        return 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if args.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    else:
        import torch

        if not torch.cuda.is_available():
            sys.exit("test_gpu: torch finds no GPU here; to rehearse: make test-gpu DEVICE=cpu")
    chosen = parts(args.device, output)
    unknown = sorted(set(args.only or []) - {part.name for part in chosen})
    if unknown:
        sys.exit(f"test_gpu: no part {unknown[0]!r}; known: {', '.join(p.name for p in chosen)}")
    if args.only:
        chosen = [part for part in chosen if part.name in args.only]
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    _prepare_page(output, args.device)
    machine = _machine(args.device)
    print(machine, flush=True)
    start = time.monotonic()
    results: list[Result] = []

    def run(part: Part) -> None:
        results.append(run_part(part, output, environment))
        # After each part: a run that is stopped leaves what it has.
        summary = {
            "device": args.device,
            "machine": machine,
            "seconds": time.monotonic() - start,
            "parts": [result._asdict() for result in results],
        }
        text = json.dumps(summary, indent=1) + "\n"
        (output / "summary.json").write_text(text, encoding="utf-8")

    together = [part for part in chosen if not part.alone]
    # A GPU waits for Python here, so these hardly slow one another down; two cores do.
    workers = len(together) if args.device == "cuda" else 2
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        list(pool.map(run, together))
    for part in chosen:
        if part.alone:
            run(part)
    passed = sum(result.outcome == "passed" for result in results)
    print(f"\n{summary_table(results)}")
    print(f"{passed} of {len(results)} parts passed in {time.monotonic() - start:.0f} s")
    print(f"summary.json, logs, tables and plots: {output}")
    return 0 if passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
