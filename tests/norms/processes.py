"""Run a function on several gloo ranks and bring back what each returns."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# A rank that waits for another that never comes fails the test soon.
TIMEOUT = timedelta(seconds=60)
# Imported once, by the process that the ranks are forked from: torch takes seconds to import.
PRELOAD = ["torch", "torch.testing", "pytest", "wsbcn_d2.norms", "wsbcn_d2.engine"]


def run_on_ranks(
    worker: Callable[[int, int], Any],
    world_size: int,
    folder: Path,
    timeout: timedelta = TIMEOUT,
) -> list[Any]:
    """``worker(rank, world_size)`` of each rank, in order; it must be a module's function."""
    folder.mkdir(exist_ok=True)
    multiprocessing.set_forkserver_preload(PRELOAD)
    mp.start_processes(
        _start,
        (worker, world_size, str(folder), timeout),
        nprocs=world_size,
        start_method="forkserver",
    )
    return [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(world_size)]


def _start(
    rank: int,
    worker: Callable[[int, int], Any],
    world_size: int,
    folder: str,
    timeout: timedelta,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=world_size, timeout=timeout
    )
    try:
        torch.save(worker(rank, world_size), f"{folder}/rank{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
