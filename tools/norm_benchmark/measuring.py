"""Times and memory of contestants that take turns on one device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["WARM_UPS", "Clock", "Result", "Round", "kept_bytes", "summarize", "take_turns"]

WARM_UPS = 3
# Bytes in units of the input's: the reads and writes that no implementation can do without.
_TRAFFIC = {"forward": 3, "backward": 5, "train": 8, "eval": 3}


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


def summarize(
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
                    share_of_copy=copied * _TRAFFIC[work] / median if copied else None,
                )
            )  # fmt: skip
    return results
