"""Time norms against each other: layers, convolutions, whole models, and over processes.

The contestants take turns, round after round, so that what else the machine does hits all alike.
A time is the median of the rounds; a ratio is the median of the rounds' own ratios to the baseline,
with the middle half of them as its spread. A ratio whose spread is more than --max-spread of it is
not printed: the row says "noisy", and the machine was too busy to tell.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from norm_benchmark.layers import DTYPES, parse_shape, run_convs, run_layers, run_sync
from norm_benchmark.models import run_models
from norm_benchmark.report import describe, describe_machine, table, write_report

__all__ = ["main"]

# What a Mask R-CNN R-50-FPN normalizes in a step at 2 x 800 x 1216: res2 to res5 (a block's width
# and its output), FPN's p2, the box head at 512 boxes an image, the mask head at 128.
STEP_SHAPES = [
    *("2x64x200x304", "2x256x200x304", "2x128x100x152", "2x512x100x152", "2x256x50x76"),
    *("2x1024x50x76", "2x512x25x38", "2x2048x25x38", "1024x256x7x7", "256x256x14x14"),
]
CPU_SHAPES = ["2x256x200x304", "512x256x14x14", "2x64x200x304"]
DEFAULT_NORMS = {
    "layers": ["GN", "BN", "SN", "SN_IN_LN", "SSN", "BCN"],
    "convs": ["conv", "WS"],
    "models": ["GN", "WS+GN", "SN", "SN_IN_LN", "BCN", "WS+BCN"],
    "sync": ["SyncBN", "naiveSyncBN", "SyncSN", "SyncBCN"],
}

RUN = {"layers": run_layers, "convs": run_convs, "models": run_models, "sync": run_sync}

EXAMPLES = """examples:
  the layers on this machine's CPU, into the documentation:
    python tools/benchmark_norms.py layers --threads 2 --write docs/performance
  everything on a GPU, float32 and bfloat16, both layouts:
    python tools/benchmark_norms.py all --device cuda --sweep --write docs/performance
  your own norm, a class in my_norms.py that takes the number of channels:
    PYTHONPATH=. python tools/benchmark_norms.py layers --norms GN SN my_norms:FastNorm
  the synchronized norms on two processes:
    python tools/benchmark_norms.py sync --processes 2 --shapes 2x64x50x76
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("suite", choices=(*RUN, "all"), help="what to time")
    add("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    add("--norms", nargs="+", metavar="NAME", help="names, or module:Class; default: the suite's")
    add("--baseline", metavar="NAME", help="ratios are to this one; default: the first of --norms")
    add("--shapes", nargs="+", metavar="NxCxHxW", help="default: three on CPU, a step's on CUDA")
    add("--dtype", choices=DTYPES, default="float32", help="of the input (default: float32)")
    add("--channels-last", action="store_true", help="input in channels_last")
    add("--sweep", action="store_true", help="float32 and bfloat16, contiguous and channels_last")
    add("--rounds", type=int, default=20, help="turns a contestant (default: 20, the least)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads a process")
    add("--max-spread", type=float, default=0.2, help="largest spread of a ratio that is printed, "
        "as a share of it (default: 0.2)")  # fmt: skip
    add("--processes", type=int, default=2, help="of the suite sync (default: 2)")
    add("--model", default="mask_rcnn_fpn", help="a file of configs/common/models")
    add("--image-size", type=int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH"))
    add("--images", type=int, default=2, help="of the suite models (default: 2)")
    add("--write", type=Path, metavar="FOLDER", help="write JSON and plots there, tables into "
        "FOLDER.md")  # fmt: skip
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if options.device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {options.device}: must be cpu or cuda")
    if options.rounds < 1 or options.processes < 1:
        raise ValueError("--rounds and --processes must be positive")
    if options.rounds < 20:
        print(
            f"--rounds {options.rounds}: medians of fewer than 20 are not for docs", file=sys.stderr
        )


def _variants(options: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """One set of options a table: each suite, and with --sweep each type and layout."""
    for suite in RUN if options.suite == "all" else [options.suite]:
        sweep = options.sweep and suite in ("layers", "convs")
        for dtype in ("float32", "bfloat16") if sweep else [options.dtype]:
            for channels_last in (False, True) if sweep else [options.channels_last]:
                one = argparse.Namespace(**vars(options))
                one.suite, one.dtype, one.channels_last = suite, dtype, channels_last
                one.norms = options.norms or DEFAULT_NORMS[suite]
                default = one.norms[0]
                if suite == "sync" and options.device.type == "cpu" and default == "SyncBN":
                    default = "naiveSyncBN"  # torch's has no CPU form
                one.baseline = options.baseline or default
                if one.baseline not in one.norms:
                    raise ValueError(
                        f"--baseline {one.baseline!r} must be one of --norms: {one.norms}"
                    )
                shapes = CPU_SHAPES if options.device.type == "cpu" else STEP_SHAPES
                one.shapes = options.shapes or shapes
                for text in one.shapes:
                    parse_shape(text)
                yield one


def _name(options: argparse.Namespace) -> str:
    words = [options.device.type, options.suite]
    if options.dtype != "float32":
        words.append(options.dtype)
    if options.suite == "models" and options.images != 2:
        words.append(f"{options.images}_image")
    words += ["channels_last"] if options.channels_last else []
    return "_".join(words)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark named on the command line; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    command = " ".join(["python tools/benchmark_norms.py", *arguments])
    warnings.filterwarnings("ignore", message=".*trains on one sample")
    try:
        _check(options)
        with _threads(options.threads):
            for one in _variants(options):
                machine = describe_machine(one)
                print(f"## {_name(one)}\n\n{describe(machine)}\n")
                results = list(RUN[one.suite](one))
                print(table(results, one.baseline, one.max_spread))
                if options.write is not None:
                    write_report(
                        options.write, _name(one), results, machine, command, one.baseline,
                        one.max_spread,
                    )  # fmt: skip
    except ValueError as error:
        print(f"benchmark_norms: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
