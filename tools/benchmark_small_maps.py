"""What a norm costs whatever the size of the map, next to its formula in plain operators.

On a map of 1 x 64 x 2 x 2 nothing but the number of operators and of Python's lines counts. The
layers take turns, round after round; a ratio is the median of the rounds' own ratios.

    python tools/benchmark_small_maps.py
    python tools/benchmark_small_maps.py --before ../main     # and another checkout in the same run
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from wsbcn_d2 import norms

__all__ = ["main"]

CHANNELS = 64


class PlainSN(nn.Module):
    """SN from its formula, every statistic from the input."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, statistics: Sequence[str] = ("in", "ln", "bn"), sparse: bool = False
    ) -> None:
        super().__init__()
        self.statistics, self.sparse = statistics, sparse
        self.weight, self.bias = (nn.Parameter(torch.full((CHANNELS,), v)) for v in (1.0, 0.0))
        self.mean_weight = nn.Parameter(torch.ones(len(statistics)))
        self.var_weight = nn.Parameter(torch.ones(len(statistics)))
        self.register_buffer("running_mean", torch.zeros(CHANNELS))
        self.register_buffer("running_var", torch.ones(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        p, q = (self._ratios(w) for w in (self.mean_weight, self.var_weight))
        mean = var = x.new_zeros(())
        for k, name in enumerate(self.statistics):
            if name == "bn" and not self.training:
                m, v = self.running_mean.view(1, -1, 1, 1), self.running_var.view(1, -1, 1, 1)
            else:
                dims = {"in": (2, 3), "ln": (1, 2, 3), "bn": (0, 2, 3)}[name]
                m = x.mean(dims, keepdim=True)
                v = x.var(dims, correction=0, keepdim=True)
                if name == "bn":
                    with torch.no_grad():
                        self.running_mean.lerp_(m.flatten(), 0.1)
                        self.running_var.lerp_(v.flatten(), 0.1)
            mean, var = mean + p[k] * m, var + q[k] * v
        x = (x - mean) / (var + 1e-5).sqrt()
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def _ratios(self, controls: Tensor) -> Tensor:
        # At radius 0 sparsestmax is sparsemax.
        if not self.sparse:
            return controls.softmax(-1)
        ranked = controls.sort(descending=True).values
        thresholds = (ranked.cumsum(0) - 1) / torch.arange(1, len(controls) + 1)
        return (controls - thresholds.max()).clamp(min=0)


class PlainBCN(nn.Module):
    """Micro-batch BCN from its formula: moved estimates, then groups."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.full((32,), v)) for v in (1.0, 0.0))
        self.inner_weight = nn.Parameter(torch.ones(CHANNELS))
        self.inner_bias = nn.Parameter(torch.zeros(CHANNELS))
        self.register_buffer("running_mean", torch.zeros(CHANNELS))
        self.register_buffer("running_var", torch.ones(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            with torch.no_grad():
                away = (x - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))
                mean.lerp_(x.mean((0, 2, 3)), 0.1)
                var.lerp_(away, 0.1)
        x = (x - mean.clone().view(1, -1, 1, 1)) / (var + 1e-5).sqrt().view(1, -1, 1, 1)
        x = x * self.inner_weight.view(1, -1, 1, 1) + self.inner_bias.view(1, -1, 1, 1)
        groups = x.reshape(x.shape[0], 32, -1)
        mean = groups.mean(2, keepdim=True)
        var = groups.var(2, correction=0, keepdim=True)
        groups = (groups - mean) / (var + 1e-5).sqrt()
        groups = groups * self.weight.view(1, -1, 1) + self.bias.view(1, -1, 1)
        return groups.view_as(x)


class PlainWSConv(nn.Conv2d):
    """The convolution that the authors of WS published."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        weight = weight - mean
        std = weight.view(weight.size(0), -1).std(1).view(-1, 1, 1, 1) + 1e-5
        return self._conv_forward(x, weight / std.expand_as(weight), self.bias)


LAYERS: dict[str, tuple[Callable[[ModuleType], nn.Module], Callable[[], nn.Module]]] = {
    "SN": (lambda m: m.SwitchNorm2d(CHANNELS), PlainSN),
    "SN_IN_LN": (
        lambda m: m.SwitchNorm2d(CHANNELS, statistics=("in", "ln")),
        lambda: PlainSN(("in", "ln")),
    ),
    "SyncSN": (lambda m: m.SyncSwitchNorm2d(CHANNELS), PlainSN),
    "SSN": (lambda m: m.SparseSwitchNorm2d(CHANNELS), lambda: PlainSN(sparse=True)),
    "BCN": (lambda m: m.BatchChannelNorm2d(CHANNELS), PlainBCN),
    "WS": (
        lambda m: m.WSConv2d(CHANNELS, CHANNELS, 1, bias=False),
        lambda: PlainWSConv(CHANNELS, CHANNELS, 1, bias=False),
    ),
}


def training(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward; with an optimizer step for a convolution."""
    x, dy = x.clone().requires_grad_(), torch.ones_like(x)
    steps = isinstance(layer, nn.Conv2d)
    optimizer = torch.optim.SGD(layer.parameters(), 1e-3) if steps else None

    def run() -> None:
        layer(x).backward(dy)
        if optimizer is not None:
            optimizer.step()

    return run


def evaluation(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward without gradient."""
    layer.eval()

    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def load(folder: Path) -> ModuleType:
    """`wsbcn_d2.norms` of another checkout, beside this one's."""
    init = folder / "wsbcn_d2" / "norms" / "__init__.py"
    spec = importlib.util.spec_from_file_location("norms_before", init)
    if spec is None or spec.loader is None or not init.is_file():
        raise SystemExit(f"benchmark_small_maps: error: no file {init}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["norms_before"] = module
    spec.loader.exec_module(module)
    return module


def time_in_turns(runs: Sequence[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Microseconds of each call, ``rounds`` of each; every round starts with another."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(-rounds // 10, rounds):
        for i in range(len(runs)):
            i = (i + turn) % len(runs)
            start = time.perf_counter()
            runs[i]()
            if turn >= 0:
                times[i].append(1e6 * (time.perf_counter() - start))
    return times


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=400, help="calls of a layer (default: 400)")
    parser.add_argument("--size", type=int, default=2, help="height and width (default: 2)")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--before", type=Path, help="root of another checkout to measure too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    packages = {"now": norms}
    if options.before:
        packages["before"] = load(options.before)
    x = torch.randn(1, CHANNELS, options.size, options.size)
    print(f"1x{CHANNELS}x{options.size}x{options.size}, one thread, torch {torch.__version__}\n")
    print("| layer | pass | plain, µs |", " | ".join(f"{n}, µs | ratio" for n in packages), "|")
    print("|---|---|---|" + "---|---|" * len(packages))
    for name in options.layers:
        build, plain = LAYERS[name]
        for make in (training, evaluation):
            layers = [plain(), *(build(package) for package in packages.values())]
            times = time_in_turns([make(layer, x) for layer in layers], options.rounds)
            cells = [f"{statistics.median(times[0]):.0f}"]
            for column in times[1:]:
                ratio = statistics.median(a / b for a, b in zip(column, times[0], strict=True))
                cells += [f"{statistics.median(column):.0f}", f"{ratio:.2f}"]
            print(f"| {name} | {make.__name__} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
