"""Time norms against each other: layers, convolutions, whole models, and over processes.

The contestants take turns, round after round, so that what else the machine does hits all alike.
A time is the median of the rounds; a ratio is the median of the rounds' own ratios to the baseline,
with the middle half of them as its spread. A ratio whose spread is more than --max-spread of it is
not printed: the row says "noisy", and the machine was too busy to tell.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsbcn_d2 import norms

__all__ = ["Result", "build_norm", "kept_bytes", "main", "parse_shape", "table", "write_report"]

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "common" / "models"
WARM_UPS = 3
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
# What a Mask R-CNN R-50-FPN normalizes in a step at 2 x 800 x 1216: res2 to res5 (a block's width
# and its output), FPN's p2, the box head at 512 boxes an image, the mask head at 128.
STEP_SHAPES = [
    *("2x64x200x304", "2x256x200x304", "2x128x100x152", "2x512x100x152", "2x256x50x76"),
    *("2x1024x50x76", "2x512x25x38", "2x2048x25x38", "1024x256x7x7", "256x256x14x14"),
]
CPU_SHAPES = ["2x256x200x304", "512x256x14x14", "2x64x200x304"]

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "GN": lambda c: nn.GroupNorm(32, c),
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "SN": norms.SwitchNorm2d,
    "SN_IN_LN": lambda c: norms.SwitchNorm2d(c, statistics=("in", "ln")),
    "SSN": norms.SparseSwitchNorm2d,
    "SyncSN": norms.SyncSwitchNorm2d,
    "BCN": norms.BatchChannelNorm2d,
    "BatchBCN": lambda c: norms.BatchChannelNorm2d(c, statistics="batch"),
    "SyncBCN": lambda c: norms.BatchChannelNorm2d(c, statistics="sync"),
}
# From detectron2's get_norm; imported only when asked for.
DETECTRON2 = ("FrozenBN", "LN", "IN", "naiveSyncBN", "naiveSyncBN_N")
SUITES = ("layers", "convs", "models", "sync")
DEFAULT_NORMS = {
    "layers": ["GN", "BN", "SN", "SN_IN_LN", "SSN", "BCN"],
    "convs": ["conv", "WS"],
    "models": ["GN", "WS+GN", "SN", "SN_IN_LN", "BCN", "WS+BCN"],
    "sync": ["SyncBN", "naiveSyncBN", "SyncSN", "SyncBCN"],
}
# Bytes in units of the input's: the reads and writes that no implementation can do without.
TRAFFIC = {"forward": 3, "backward": 5, "train": 8, "eval": 3}


class Result(NamedTuple):
    """One contestant in one pass over one shape; times in milliseconds, ratios to the baseline."""

    suite: str
    case: str
    norm: str
    work: str  # "train", "forward", "backward" or "eval"
    median_ms: float | None
    quartiles_ms: tuple[float, float] | None
    rounds: int
    ratio: float | None
    ratio_spread: float | None
    kept: float | None  # bytes kept for the backward pass, in units of the input's
    share_of_copy: float | None  # bandwidth achieved, in units of a device copy's
    note: str = ""


# --- contestants -----------------------------------------------------------------------------


def build_norm(name: str, channels: int) -> nn.Module:
    """The norm of this name, or ``Class(channels)`` for ``module:Class``.

    Raises:
        ValueError: the name is unknown, or the class cannot be imported or built.
    """
    if name in LAYERS:
        return LAYERS[name](channels)
    if ":" in name:
        return _imported(name)(channels)
    if name in DETECTRON2:
        try:
            from wsbcn_d2.modeling.norm_registry import build_norm as build
        except ImportError as error:
            raise ValueError(
                f"norm {name!r} needs detectron2, which fails to import: {error}"
            ) from None
        norm = build(name, channels)
        assert norm is not None
        return norm
    raise ValueError(
        f"unknown norm {name!r}; known: {', '.join((*LAYERS, *DETECTRON2))}, or module:Class"
    )


def _imported(name: str) -> Callable[[int], nn.Module]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot import norm {name!r}: {error}. It must be an importable module, a colon and a "
            "class that takes the number of channels; PYTHONPATH says where modules are looked for"
        ) from None


def parse_shape(text: str) -> tuple[int, ...]:
    """``"2x64x50x76"`` as ``(2, 64, 50, 76)``.

    Raises:
        ValueError: not four positive numbers.
    """
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"shape {text!r} must be NxCxHxW in positive numbers, e.g. 2x256x200x304")
    return shape


# --- measuring -------------------------------------------------------------------------------


class Clock:
    """Times calls on one device in milliseconds: its own events on CUDA, else the wall."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __call__(self, work: Callable[[], Any]) -> tuple[float, Any]:
        if not self.cuda:
            start = time.perf_counter()
            result = work()
            return 1000 * (time.perf_counter() - start), result
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        before.record()
        result = work()
        after.record()
        after.synchronize()
        return before.elapsed_time(after), result


class _Allocations(TorchDispatchMode):
    """Notes every storage that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            StorageWeakRef(item.untyped_storage()).cdata
            for item in tree_leaves((args, kwargs))
            if isinstance(item, Tensor) and item.layout == torch.strided
        }
        result = func(*args, **(kwargs or {}))
        for item in tree_leaves(result):
            if isinstance(item, Tensor) and item.layout == torch.strided:
                storage = item.untyped_storage()
                ref = StorageWeakRef(storage)
                if ref.cdata not in given:  # a view or in place: noted when it was made, if here
                    self.made[ref.cdata] = (ref, storage.nbytes())
        return result

    def alive(self) -> dict[int, int]:
        return {cdata: size for cdata, (ref, size) in self.made.items() if not ref.expired()}


def kept_bytes(function: Callable[[], Tensor]) -> int:
    """Bytes that ``function`` allocated and its result keeps alive, less the result's own."""
    with _Allocations() as allocations:
        y = function()
    gc.collect()
    alive = allocations.alive()
    alive.pop(StorageWeakRef(y.untyped_storage()).cdata, None)
    return sum(alive.values())


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


# One round of one contestant: its milliseconds by kind of work.
Round = Callable[[], dict[str, float]]


def take_turns(contestants: dict[str, Round], rounds: int) -> dict[str, dict[str, list[float]]]:
    """All rounds' times by contestant and kind of work; another one starts each round."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    names = list(contestants)
    for r in range(-WARM_UPS, rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            sample = contestants[name]()
            if r >= 0:
                for work, ms in sample.items():
                    times[name].setdefault(work, []).append(ms)
    return times


def _results(
    suite: str,
    case: str,
    times: dict[str, dict[str, list[float]]],
    baseline: str,
    kept: dict[str, float | None],
    copy: bool = False,
) -> list[Result]:
    copied = statistics.median(times["copy"]["copy"]) / 2 if copy else None  # ms for one read
    results = []
    for name, works in times.items():
        for work, values in works.items():
            if work == "copy":
                continue
            ratios = []
            if name != baseline and work in times.get(baseline, {}):
                ratios = [a / b for a, b in zip(values, times[baseline][work], strict=True)]
            low, high = _quartiles(ratios) if ratios else (0.0, 0.0)
            median = statistics.median(values)
            results.append(
                Result(
                    suite, case, name, work, median, _quartiles(values), len(values),
                    ratio=statistics.median(ratios) if ratios else None,
                    ratio_spread=high - low if ratios else None,
                    kept=kept.get(name) if work == "train" else None,
                    share_of_copy=copied * TRAFFIC[work] / median if copied else None,
                )
            )  # fmt: skip
    return results


# --- suites ----------------------------------------------------------------------------------


def _input(shape: Sequence[int], options: argparse.Namespace) -> Tensor:
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    return x.to(options.device, DTYPES[options.dtype]).contiguous(memory_format=layout)


def _layer_round(
    layer: nn.Module, x: Tensor, dy: Tensor, clock: Clock, options: argparse.Namespace
) -> Round:
    run: Callable[[Tensor], Tensor] = torch.compile(layer) if options.compile else layer
    graph = _captured(layer, x, dy) if options.cuda_graph else None

    def sample() -> dict[str, float]:
        leaf = x.detach().requires_grad_()
        layer.train().zero_grad(set_to_none=True)
        if graph is not None:
            return {"train": clock(graph.replay)[0]}
        forward, y = clock(lambda: run(leaf))
        backward, _ = clock(partial(y.backward, dy))
        del y
        with torch.no_grad():
            layer.eval()
            evaluation, _ = clock(lambda: run(x))
        return {
            "train": forward + backward,
            "forward": forward,
            "backward": backward,
            "eval": evaluation,
        }

    return sample


def _captured(layer: nn.Module, x: Tensor, dy: Tensor) -> Any:
    """A CUDA graph of one forward and backward pass."""
    leaf = x.detach().requires_grad_()
    wanted = [leaf, *(p for p in layer.parameters() if p.requires_grad)]

    def step() -> None:  # autograd.grad: nothing accumulates from replay to replay
        torch.autograd.grad(layer(leaf), wanted, dy)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def _kept_by_layer(layer: nn.Module, x: Tensor) -> float:
    leaf = x.detach().requires_grad_()

    # Made inside, so that it is counted if the layer keeps it and dies if not.
    def function() -> Tensor:
        y: Tensor = layer(leaf * 1)
        return y

    layer.train()
    function()  # fills what a layer caches
    return kept_bytes(function) / (x.numel() * x.element_size())


def _grad_like(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.empty_like(y).copy_(torch.randn(y.shape, generator=generator))


def run_layers(options: argparse.Namespace) -> Iterator[Result]:
    clock = Clock(options.device)
    for text in options.shapes:
        shape = parse_shape(text)
        x = _input(shape, options)
        target = torch.empty_like(x)
        dy = _grad_like(x)

        def copy(x: Tensor = x, target: Tensor = target) -> dict[str, float]:
            return {"copy": clock(lambda: target.copy_(x))[0]}

        rounds: dict[str, Round] = {"copy": copy}
        kept: dict[str, float | None] = {}
        for name in options.norms:
            torch.manual_seed(0)
            layer = build_norm(name, shape[1]).to(options.device)
            try:
                kept[name] = _kept_by_layer(layer, x)
            except (ValueError, RuntimeError) as error:
                yield _unsupported("layers", text, name, error)
                continue
            rounds[name] = _layer_round(layer, x, dy, clock, options)
        times = take_turns(rounds, options.rounds)
        yield from _results("layers", text, times, options.baseline, kept, copy=True)


def run_convs(options: argparse.Namespace) -> Iterator[Result]:
    """A convolution and WS of it; the weight changes each round, as by an optimizer."""
    kinds: dict[str, type[nn.Conv2d]] = {"conv": nn.Conv2d, "WS": norms.WSConv2d}
    clock = Clock(options.device)
    for text in options.shapes:
        shape = parse_shape(text)
        x = _input(shape, options)
        rounds: dict[str, Round] = {}
        kept: dict[str, float | None] = {}
        for name in options.norms:
            if name not in kinds:
                raise ValueError(f"unknown convolution {name!r}; known: {', '.join(kinds)}")
            conv = kinds[name](shape[1], shape[1], 3, padding=1, bias=False)
            conv = conv.to(options.device, x.dtype)
            kept[name] = _kept_by_layer(conv, x)
            inner = _layer_round(conv, x, _grad_like(conv(x).detach()), clock, options)

            def sample(conv: nn.Conv2d = conv, inner: Round = inner) -> dict[str, float]:
                with torch.no_grad():
                    conv.weight.add_(0)
                return inner()

            rounds[name] = sample
        yield from _results(
            "convs", text, take_turns(rounds, options.rounds), options.baseline, kept
        )


def _build_model(name: str, kind: str, options: argparse.Namespace) -> Any:
    from detectron2.config import LazyConfig, instantiate

    from wsbcn_d2.modeling import register_norms, use_norm

    register_norms()
    model = LazyConfig.load(str(CONFIGS / f"{kind}.py")).model
    plain = name.removeprefix("WS+")
    norm = _imported(plain) if ":" in plain else plain
    use_norm(model, norm, standardize=plain != name)
    torch.manual_seed(0)
    built: nn.Module = instantiate(model).to(options.device)
    if options.channels_last:
        built = built.to(memory_format=torch.channels_last)
    return built


def _images(height: int, width: int, count: int, num_classes: int) -> list[dict[str, Any]]:
    from detectron2.structures import BitMasks, Boxes, Instances

    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(count):
        corners = torch.rand(8, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        sizes = (0.1 + 0.4 * torch.rand(8, 2, generator=generator)) * min(height, width)
        boxes = Boxes(torch.cat([corners, corners + sizes], 1))
        boxes.clip((height, width))
        masks = torch.zeros(8, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.tensor.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances = Instances((height, width), gt_boxes=boxes, gt_masks=BitMasks(masks))
        instances.gt_classes = torch.randint(num_classes, (8,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        images.append({"image": image, "instances": instances, "height": height, "width": width})
    return images


def _model_round(model: nn.Module, batch: list[dict[str, Any]], clock: Clock) -> Round:
    """The caller opens detectron2's EventStorage."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    def sample() -> dict[str, float]:
        model.train()
        torch.manual_seed(0)  # the same boxes are drawn
        train, _ = clock(step)
        with torch.no_grad():
            model.eval()
            evaluation, _ = clock(lambda: model(batch))
        return {"train": train, "eval": evaluation}

    return sample


def _train_loss(model: nn.Module, batch: list[dict[str, Any]]) -> Tensor:
    from detectron2.utils.events import EventStorage

    torch.manual_seed(0)
    model.train()
    with EventStorage():
        losses: list[Tensor] = list(model(batch).values())
    return torch.stack(losses).sum()


def run_models(options: argparse.Namespace) -> Iterator[Result]:
    """Whole training steps, loss to optimizer, and evaluation forwards of a Mask R-CNN."""
    from detectron2.utils.events import EventStorage

    if not (CONFIGS / f"{options.model}.py").exists():
        known = sorted(path.stem for path in CONFIGS.glob("*.py"))
        raise ValueError(f"unknown model {options.model!r}; known: {', '.join(known)}")
    height, width = options.image_size
    clock = Clock(options.device)
    rounds: dict[str, Round] = {}
    held: dict[str, int] = {}
    for name in options.norms:
        model = _build_model(name, options.model, options)
        batch = _images(height, width, options.images, model.roi_heads.num_classes)
        _train_loss(model, batch)
        if options.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            _train_loss(model, batch).backward()
            model.zero_grad(set_to_none=True)
            held[name] = torch.cuda.max_memory_allocated() - before
        else:
            held[name] = kept_bytes(functools.partial(_train_loss, model, batch))
        rounds[name] = _model_round(model, batch, clock)
    unit = held.get(options.baseline)
    kept = {name: size / unit if unit else None for name, size in held.items()}
    case = f"{options.model} {options.images}x{height}x{width}"
    with EventStorage():
        times = take_turns(rounds, options.rounds)
    for result in _results("models", case, times, options.baseline, kept):
        size = f"{held[result.norm] / 2**20:,.0f} MiB" if result.work == "train" else ""
        yield result._replace(note=size)


def _unsupported(suite: str, case: str, name: str, error: Exception) -> Result:
    note = str(error).split("\n")[0]
    return Result(suite, case, name, "train", None, None, 0, None, None, None, None, note)


def run_sync(options: argparse.Namespace) -> Iterator[Result]:
    """The synchronized norms, over processes; rank 0's times, which wait for the slowest."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (options, folder), nprocs=options.processes)
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    yield from (Result(*fields) for fields in results)


def _rank(rank: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(options.threads)
    if options.device.type == "cuda":
        options.device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(options.device)
    backend = "nccl" if options.device.type == "cuda" else "gloo"
    store = f"file://{folder}/store"
    dist.init_process_group(backend, store, rank=rank, world_size=options.processes)
    try:
        results = list(_sync_cases(options))
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results), encoding="utf-8")


def _sync_cases(options: argparse.Namespace) -> Iterator[Result]:
    clock = Clock(options.device)
    for text in options.shapes:
        shape = parse_shape(text)
        case = f"{text} on {options.processes} processes"
        x = _input(shape, options)
        dy = _grad_like(x)
        rounds: dict[str, Round] = {}
        kept: dict[str, float | None] = {}
        for name in options.norms:
            if name in ("SyncBN", "nnSyncBN") and options.device.type == "cpu":
                error = ValueError("torch.nn.SyncBatchNorm does not run on CPU")
                yield _unsupported("sync", case, name, error)
                continue
            layer = build_norm(name, shape[1]).to(options.device)
            kept[name] = _kept_by_layer(layer, x)
            inner = _layer_round(layer, x, dy, clock, options)

            def sample(inner: Round = inner) -> dict[str, float]:
                dist.barrier()
                return inner()

            rounds[name] = sample
        yield from _results(
            "sync", case, take_turns(rounds, options.rounds), options.baseline, kept
        )


RUN = {"layers": run_layers, "convs": run_convs, "models": run_models, "sync": run_sync}


# --- reporting -------------------------------------------------------------------------------


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _machine(options: argparse.Namespace) -> dict[str, str]:
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
    body = f"\n`{command}`\n\n{_described(machine)}\n\n{table(results, baseline, max_spread)}\n" + (
        f"![{name}: times in units of {baseline}'s]({folder.name}/{name}.png)\n\n"
        if plotted
        else ""
    )
    page.write_text(head + start + body + mark + tail, encoding="utf-8")


def _described(machine: dict[str, str]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in machine.items()) + "."


# --- command line ----------------------------------------------------------------------------

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
    add("suite", choices=(*SUITES, "all"), help="what to time")
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
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--compile", action="store_true", help="layers, convs through torch.compile")
    how.add_argument("--cuda-graph", action="store_true", help="layers, convs as a CUDA graph")
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
    if options.cuda_graph and options.device.type != "cuda":
        raise ValueError("--cuda-graph needs --device cuda")
    if options.rounds < 1 or options.processes < 1:
        raise ValueError("--rounds and --processes must be positive")
    if options.rounds < 20:
        print(
            f"--rounds {options.rounds}: medians of fewer than 20 are not for docs", file=sys.stderr
        )


def _variants(options: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """One set of options a table: each suite, and with --sweep each type and layout."""
    for suite in SUITES if options.suite == "all" else [options.suite]:
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
    words += [w for w in ("channels_last", "compile", "cuda_graph") if getattr(options, w)]
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
                machine = _machine(one)
                print(f"## {_name(one)}\n\n{_described(machine)}\n")
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
