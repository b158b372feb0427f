"""Start the processes of a run with ``torch.multiprocessing``, or join those of torchrun."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, NoReturn
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessException,
    ProcessExitedException,
    start_processes,
)

from ..errors import ConfigError, RankFailedError, UserError
from .preemption import EXIT_STOPPED

__all__ = ["end_process", "is_consequence", "launch", "planned_world_size", "under_torchrun"]

_TIMEOUT = timedelta(minutes=30)
_START_METHOD = "spawn"  # CUDA does not survive a fork
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What gloo and NCCL raise, besides DistError, when another rank is gone.
_CONNECTION = re.compile(r"\bgloo\b|\bNCCL\b|Connection (closed|reset) by peer", re.IGNORECASE)
# Seconds that a rank waits with the error that another rank's end caused, so that whoever started
# the processes sees the other rank's first.
_HEAD_START = 5.0
# Seconds that the interpreter of a failed rank has to end.
_EXIT_TIME = 30
_HINTS = {
    "SIGKILL": " (often by the out-of-memory killer, see dmesg, or by the scheduler)",
    "SIGBUS": " (often a full /dev/shm: use fewer data loader workers, or more shared memory)",
    "SIGSEGV": " (a fault in compiled code; PYTHONFAULTHANDLER=1 shows where)",
}


def under_torchrun() -> bool:
    """Whether torchrun, or another launcher that sets its environment, started this process."""
    return all(name in os.environ for name in _TORCHRUN)


def planned_world_size(
    num_gpus_per_machine: int, num_machines: int = 1, machine_rank: int = 0
) -> int:
    """Return the number of processes in which `launch` will run ``main_func``.

    Args:
        num_gpus_per_machine: processes per machine.
        num_machines: how many machines.
        machine_rank: index of this one.

    Raises:
        ConfigError: one of them is out of range.
    """
    for name, value, least in (
        ("--num-gpus", num_gpus_per_machine, 1),
        ("--num-machines", num_machines, 1),
        ("--machine-rank", machine_rank, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}, but must be an integer of at least {least}")
    if machine_rank >= num_machines:
        raise ConfigError(
            f"--machine-rank is {machine_rank}, but must be below --num-machines ({num_machines})"
        )
    if under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return num_gpus_per_machine * num_machines


@dataclass(frozen=True)
class _Ranks:
    """What the ranks of this machine have in common."""

    main_func: Callable[..., Any]
    args: tuple[Any, ...]
    backend: str
    world_size: int
    local_size: int
    first_rank: int
    timeout: timedelta


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
    """Run ``main_func(*args)`` in every process of a job, as detectron2's ``launch``, also on CPU.

    Under torchrun, this process is one of them, and the numbers come from its environment.
    Otherwise ``num_gpus_per_machine`` processes are spawned on this machine; if there is only one
    process in all, the function is called directly.

    When a spawned process fails, all processes on this machine are stopped, including their data
    loader workers. The same happens when this process is interrupted, terminated or killed (on
    Linux). Other machines notice through their collectives.

    Args:
        main_func: a module-level function, because the processes import it.
        num_gpus_per_machine: processes per machine; with ``device="cpu"`` they need no GPU.
        num_machines, machine_rank: number of machines, and the index of this one.
        dist_url: ``tcp://host:port`` on which machine 0 listens; ``"auto"`` picks a free port and
            is for one machine only.
        args: arguments of the function.
        timeout: of every collective, i.e. how long a rank may be busy while others wait for it.
        device: ``"cuda"`` (NCCL) or ``"cpu"`` (gloo).

    Raises:
        ConfigError: more processes than GPUs, ``"auto"`` with several machines, a port in use.
        UserError: a process raised it.
        RankFailedError: a process failed otherwise; the message has the rank and its traceback or
            signal.
        SystemExit: with status `EXIT_STOPPED`, if the processes ended with that status.
    """
    cuda = device.startswith("cuda")
    world_size = planned_world_size(num_gpus_per_machine, num_machines, machine_rank)
    local_size = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else num_gpus_per_machine
    if cuda and local_size > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus is {local_size}, but this machine has {torch.cuda.device_count()} GPU(s); "
            "for that many CPU processes add the override train.device=cpu (lazy) or "
            "MODEL.DEVICE cpu (yaml)"
        )
    ranks = _Ranks(
        main_func,
        args,
        "nccl" if cuda else "gloo",
        world_size,
        local_size,
        machine_rank * local_size,
        timeout,
    )
    if under_torchrun():
        _join_torchrun(ranks)
    elif ranks.world_size == 1:
        main_func(*args)
    elif dist_url == "auto" and num_machines > 1:
        raise ConfigError(
            f"--dist-url is needed with --num-machines {num_machines}: tcp://<address of "
            "machine 0>:<free port>, the same on all of them"
        )
    else:
        _spawn(ranks, *_open_store(dist_url, machine_rank, timeout))


def _run(ranks: _Ranks, rank: int, local_rank: int, store: dist.Store | None) -> None:
    """Join the process group, run, leave it."""
    if ranks.backend == "nccl":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Each process would start a thread per core; they would then wait for one another.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_size))
    try:
        dist.init_process_group(
            ranks.backend,
            store=store,
            rank=rank,
            world_size=ranks.world_size,
            timeout=ranks.timeout,
        )
        comm.create_local_process_group(ranks.local_size)
        # The first collective, as rank 0's set-up may take longer than NCCL's own time-out.
        comm.synchronize()
        ranks.main_func(*ranks.args)
    except Exception as error:
        if is_consequence(error):
            time.sleep(_HEAD_START)
        # A CUDA context, or ranks that do not answer, may hold up the end of the interpreter.
        signal.alarm(_EXIT_TIME)
        raise
    # Not after an exception: it would wait for ranks that are inside another collective.
    dist.destroy_process_group()


def is_consequence(error: BaseException) -> bool:
    """Whether ``error`` only says that another process is gone."""
    cause = None if isinstance(error, UserError) else error
    while cause is not None:
        if isinstance(cause, dist.DistError):
            return True
        if isinstance(cause, RuntimeError) and _CONNECTION.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _spawn(ranks: _Ranks, host: str, port: int, server: dist.Store | None) -> None:
    """Start the ranks of this machine and wait for them; ``server`` must live as long as they."""
    # torch hands on a traceback only.
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # Its warnings would precede the message of the error.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    context = start_processes(
        _spawned,
        (ranks, host, port, os.getpid(), sender),
        nprocs=ranks.local_size,
        join=False,
        start_method=_START_METHOD,
    )
    try:
        # join() notices the end of a process when all have closed what they inherited from it; so
        # data loader workers of a rank that was killed must go first.
        while not context.join(timeout=1):
            for process in context.processes:
                if process.exitcode:
                    _kill_group(process.pid)
    except ProcessException as error:
        if receiver.poll():
            raise receiver.recv() from None
        if isinstance(error, ProcessExitedException) and error.exit_code == EXIT_STOPPED:
            raise SystemExit(EXIT_STOPPED) from None
        raise RankFailedError(_describe(error, ranks)) from None
    finally:
        _end(context)


def _spawned(
    local_rank: int,
    ranks: _Ranks,
    host: str,
    port: int,
    parent: int,
    errors: Connection[UserError, Any],
) -> None:
    """Body of a spawned process."""
    # With its data loader workers in a group of its own, which can be killed as a whole, and out of
    # reach of Ctrl-C in the terminal, which is for the launcher.
    os.setpgid(0, 0)
    _end_with(parent)
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=ranks.timeout)
        _run(ranks, ranks.first_rank + local_rank, local_rank, store)
    except UserError as error:
        errors.send(error)
        raise
    except SystemExit as stop:
        end_process(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
    end_process(0)


def end_process(status: int) -> NoReturn:
    """End a rank that is done, without tearing the interpreter down.

    A thread of torch's that asks for the interpreter's lock meanwhile would abort the process
    ("terminate called without an active exception"), and the run would seem to have failed.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _open_store(
    dist_url: str, machine_rank: int, timeout: timedelta
) -> tuple[str, int, dist.Store | None]:
    """Return host and port of the job's store; on machine 0, open it in this process.

    Not in rank 0, which would take it along when it fails: the other ranks would report that.
    """
    host, port = "127.0.0.1", 0  # 0: the system picks a free one
    if dist_url != "auto":
        url = urlparse(dist_url)
        if url.scheme != "tcp" or url.hostname is None or url.port is None:
            raise ConfigError(f"--dist-url ({dist_url}) must be tcp://<host>:<port>, or auto")
        host, port = url.hostname, url.port
    if machine_rank > 0:
        return host, port, None
    try:
        server = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timeout)
    except dist.DistError as error:
        raise ConfigError(
            f"--dist-url {dist_url}: cannot listen on port {port} of this machine, which is to be "
            f"machine 0; take a free port ({error})"
        ) from error
    return host, server.port, server


def _describe(error: ProcessException, ranks: _Ranks) -> str:
    rank = ranks.first_rank + error.error_index
    who = f"rank {rank} of {ranks.world_size} (host {socket.gethostname()}, pid {error.error_pid})"
    if not isinstance(error, ProcessExitedException):
        traceback = error.msg.partition("the following error:\n")[2].rstrip()
        return f"{who} failed:\n\n{traceback}"
    if error.signal_name is None:
        return f"{who} ended with exit code {error.exit_code}"
    return f"{who} was killed by {error.signal_name}{_HINTS.get(error.signal_name, '')}"


def _end(context: ProcessContext) -> None:
    """Kill what is left of the ranks and of the data loader workers."""
    for process in context.processes:
        _kill_group(process.pid)
        process.kill()  # had it no group yet
        process.join()


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _end_with(parent: int) -> None:
    """Have this process killed when its parent ends. Linux; elsewhere it does nothing."""
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    if os.getppid() != parent:  # ended before that
        os._exit(1)


def _join_torchrun(ranks: _Ranks) -> None:
    """Run one rank. Whoever started it ends the others when it fails."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with(os.getppid())
    try:
        _run(ranks, int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), store=None)
    except UserError:
        raise
    except Exception as error:
        # Without it torchrun's summary has no traceback.
        get_error_handler().record_exception(error)
        raise
