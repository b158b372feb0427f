"""Starting the processes of a run: spawned here or by torchrun, CUDA with NCCL or CPU with gloo."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing.spawn import start_processes

from .config import ConfigError

__all__ = ["launch", "planned_world_size", "under_torchrun"]

logger = logging.getLogger(__name__)

_TIMEOUT = timedelta(minutes=30)
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def under_torchrun() -> bool:
    """Whether this process was started by torchrun, which has then said how many there are."""
    return all(name in os.environ for name in _TORCHRUN)


def planned_world_size(num_gpus_per_machine: int, num_machines: int) -> int:
    """How many processes `launch` will have run ``main_func``."""
    if under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return num_gpus_per_machine * num_machines


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
    timeout: timedelta = _TIMEOUT,
    *,
    device: str = "cuda",
) -> None:
    """Run ``main_func(*args)`` in every process of a job; detectron2's ``launch``, and more.

    Under torchrun this process is one of them, and the numbers come from its environment.
    Otherwise ``num_gpus_per_machine`` processes are spawned on this machine, or with one in all,
    the function is simply called. When a process fails, the others are stopped.

    Args:
        main_func: a function of a module (the processes import it).
        num_gpus_per_machine: processes on each machine; on ``"cpu"`` they need no GPU.
        num_machines, machine_rank: how many machines, and which this one is.
        dist_url: where rank 0 listens, ``tcp://host:port``; ``"auto"`` is a free port of this
            machine, for one machine only.
        args: the function's arguments.
        timeout: of every collective.
        device: ``"cuda"`` (NCCL) or ``"cpu"`` (gloo).

    Raises:
        ConfigError: more processes than GPUs, or ``"auto"`` with several machines.
        torch.multiprocessing.ProcessRaisedException: with the traceback of the process that
            failed first.
    """
    cuda = device.startswith("cuda")
    local_size = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else num_gpus_per_machine
    if local_size < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ConfigError(
            f"--num-gpus ({local_size}) and --num-machines ({num_machines}) must be positive, and "
            f"--machine-rank ({machine_rank}) one of 0 … {num_machines - 1}"
        )
    if cuda and local_size > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus is {local_size}, but this machine has {torch.cuda.device_count()} GPU(s); "
            "for that many CPU processes add the override train.device=cpu (lazy) or "
            "MODEL.DEVICE cpu (yaml)"
        )
    backend = "nccl" if cuda else "gloo"
    if under_torchrun():
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ["LOCAL_RANK"])
        _run(local_rank, main_func, args, backend, "env://", rank, world_size, local_size, timeout)
        return
    world_size = num_gpus_per_machine * num_machines
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise ConfigError(
                f"--dist-url is needed with --num-machines {num_machines}: tcp://<address of "
                "machine 0>:<free port>, the same on all of them"
            )
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    start_processes(
        _spawned,
        nprocs=num_gpus_per_machine,
        args=(main_func, args, backend, dist_url, machine_rank, world_size, local_size, timeout),
    )


def _spawned(
    local_rank: int,
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    backend: str,
    dist_url: str,
    machine_rank: int,
    world_size: int,
    local_size: int,
    timeout: timedelta,
) -> None:
    rank = machine_rank * local_size + local_rank
    _run(local_rank, main_func, args, backend, dist_url, rank, world_size, local_size, timeout)


def _run(
    local_rank: int,
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    backend: str,
    dist_url: str,
    rank: int,
    world_size: int,
    local_size: int,
    timeout: timedelta,
) -> None:
    """One process of several: join the group, run, leave it."""
    if backend == "nccl":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Each process would start a thread a core; they would then wait for one another.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
    try:
        dist.init_process_group(
            backend, init_method=dist_url, rank=rank, world_size=world_size, timeout=timeout
        )
    except Exception as error:
        raise RuntimeError(
            f"rank {rank} of {world_size} cannot join {dist_url}: {error}"
        ) from error
    comm.create_local_process_group(local_size)
    # A first collective here, as rank 0's set-up may take longer than NCCL's own time-out.
    comm.synchronize()
    main_func(*args)
    # Not after an exception: the other ranks may be inside a collective, and this would wait for
    # them where it should exit and have them stopped.
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
