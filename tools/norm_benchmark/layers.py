"""The suites of single layers: norms, convolutions, and norms over several processes."""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from wsbcn_d2.modeling import norm_registry
from wsbcn_d2.norms import WSConv2d

from .measuring import Clock, Result, Round, kept_bytes, summarize, take_turns

__all__ = ["DTYPES", "build_norm", "imported", "parse_shape", "run_convs", "run_layers", "run_sync"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def build_norm(name: str, channels: int) -> nn.Module:
    """Build a contestant.

    Args:
        name: of a norm, as in a config's ``NORM``; or ``module:Class``.
        channels: of the norm.

    Raises:
        ValueError: the name is unknown, or the class cannot be imported or built.
    """
    if ":" in name:
        return imported(name)(channels)
    norm = norm_registry.build_norm(name, channels)
    assert norm is not None
    return norm


def imported(name: str) -> Callable[[int], nn.Module]:
    """The class of a ``module:Class``.

    Raises:
        ValueError: it cannot be imported.
    """
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


def _input(shape: Sequence[int], options: argparse.Namespace) -> Tensor:
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    return x.to(options.device, DTYPES[options.dtype]).contiguous(memory_format=layout)


def _layer_round(layer: nn.Module, x: Tensor, dy: Tensor, clock: Clock) -> Round:
    def sample() -> dict[str, float]:
        leaf = x.detach().requires_grad_()
        layer.train().zero_grad(set_to_none=True)
        forward, y = clock(lambda: layer(leaf))
        backward, _ = clock(partial(y.backward, dy))
        del y
        with torch.no_grad():
            layer.eval()
            evaluation, _ = clock(lambda: layer(x))
        return {
            "train": forward + backward,
            "forward": forward,
            "backward": backward,
            "eval": evaluation,
        }

    return sample


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
            rounds[name] = _layer_round(layer, x, dy, clock)
        times = take_turns(rounds, options.rounds)
        yield from summarize("layers", text, times, options.baseline, kept, copy=True)


def run_convs(options: argparse.Namespace) -> Iterator[Result]:
    """A convolution and WS of it; the weight changes each round, as by an optimizer."""
    kinds: dict[str, type[nn.Conv2d]] = {"conv": nn.Conv2d, "WS": WSConv2d}
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
            inner = _layer_round(conv, x, _grad_like(conv(x).detach()), clock)

            def sample(conv: nn.Conv2d = conv, inner: Round = inner) -> dict[str, float]:
                with torch.no_grad():
                    conv.weight.add_(0)
                return inner()

            rounds[name] = sample
        yield from summarize(
            "convs", text, take_turns(rounds, options.rounds), options.baseline, kept
        )


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
            inner = _layer_round(layer, x, dy, clock)

            def sample(inner: Round = inner) -> dict[str, float]:
                dist.barrier()
                return inner()

            rounds[name] = sample
        yield from summarize(
            "sync", case, take_turns(rounds, options.rounds), options.baseline, kept
        )
