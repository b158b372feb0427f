"""Starting the processes of a run: spawned here or by torchrun, CUDA with NCCL or CPU with gloo.

And ending them: when one fails, all others are stopped, on all machines, and the error is its own.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

from ..errors import ConfigError
from .faults import Failure, RankFailedError, first_cause, name_rank
from .preemption import EXIT_STOPPED
from .watch import Watch

__all__ = ["launch", "planned_world_size", "under_torchrun"]

logger = logging.getLogger(__name__)

_TIMEOUT = timedelta(minutes=30)
_START_METHOD: Final = "spawn"  # CUDA does not survive a fork
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def under_torchrun() -> bool:
    """Whether this process was started by torchrun, which has then said how many there are."""
    return all(name in os.environ for name in _TORCHRUN)


def planned_world_size(num_gpus_per_machine: int, num_machines: int) -> int:
    """How many processes `launch` will have run ``main_func``."""
    if under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return num_gpus_per_machine * num_machines


@dataclass(frozen=True)
class _Job:
    """What all processes of a job have in common."""

    main_func: Callable[..., Any]
    args: tuple[Any, ...]
    backend: str
    world_size: int
    local_size: int
    timeout: timedelta
    fault_timeout: float

    @property
    def grace(self) -> float:
        """Seconds that a process has to end by itself before it is killed."""
        return min(5.0, self.fault_timeout / 6)


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
    fault_timeout: float = 60.0,
) -> None:
    """Run ``main_func(*args)`` in every process of a job; detectron2's ``launch``, and more.

    Under torchrun this process is one of them, and the numbers come from its environment.
    Otherwise ``num_gpus_per_machine`` processes are spawned on this machine, or with one in all,
    the function is simply called.

    When a process raises or is killed, all others are stopped, on all machines, whatever they are
    doing; so are the processes that they have started, such as data loader workers. That is also
    what happens when this process is interrupted, terminated or killed (on Linux).

    Args:
        main_func: a function of a module (the processes import it).
        num_gpus_per_machine: processes on each machine; on ``"cpu"`` they need no GPU.
        num_machines, machine_rank: how many machines, and which this one is.
        dist_url: where machine 0 listens, ``tcp://host:port``; ``"auto"`` is a free port of this
            machine, for one machine only.
        args: the function's arguments.
        timeout: of every collective: how long a rank may be busy while others wait for it.
        device: ``"cuda"`` (NCCL) or ``"cpu"`` (gloo).
        fault_timeout: seconds within which a failure has ended all processes, at least 10. It
            does not limit how long they may be busy.

    Raises:
        ConfigError: more processes than GPUs, ``"auto"`` with several machines, a port in use.
        RankFailedError: a process failed; names it, with its traceback or signal. Under torchrun,
            and with one process in all, its own exception is raised in it.
        SystemExit: with status `EXIT_STOPPED`, when that is how the processes ended.
    """
    cuda = device.startswith("cuda")
    local_size = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else num_gpus_per_machine
    if local_size < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ConfigError(
            f"--num-gpus ({local_size}) and --num-machines ({num_machines}) must be positive, and "
            f"--machine-rank ({machine_rank}) one of 0 … {num_machines - 1}"
        )
    if fault_timeout < 10:
        raise ConfigError(f"--fault-timeout ({fault_timeout:g}) must be at least 10 (seconds)")
    if cuda and local_size > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus is {local_size}, but this machine has {torch.cuda.device_count()} GPU(s); "
            "for that many CPU processes add the override train.device=cpu (lazy) or "
            "MODEL.DEVICE cpu (yaml)"
        )
    world_size = planned_world_size(num_gpus_per_machine, num_machines)
    job = _Job(
        main_func,
        args,
        "nccl" if cuda else "gloo",
        world_size,
        local_size,
        timeout,
        fault_timeout,
    )
    if under_torchrun():
        _run_under_torchrun(job)
    elif world_size == 1:
        main_func(*args)
    else:
        if dist_url == "auto" and num_machines > 1:
            raise ConfigError(
                f"--dist-url is needed with --num-machines {num_machines}: tcp://<address of "
                "machine 0>:<free port>, the same on all of them"
            )
        _spawn(job, num_machines, machine_rank, dist_url)


def _run(job: _Job, rank: int, local_rank: int, store: dist.Store) -> None:
    """One process of several: join the group, run, leave it."""
    if job.backend == "nccl":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Each process would start a thread a core; they would then wait for one another.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // job.local_size))
    dist.init_process_group(
        job.backend, store=store, rank=rank, world_size=job.world_size, timeout=job.timeout
    )
    comm.create_local_process_group(job.local_size)
    # A first collective here, as rank 0's set-up may take longer than NCCL's own time-out.
    comm.synchronize()
    job.main_func(*job.args)
    # Not after an exception: the other ranks may be inside a collective, and this would wait for
    # them where it should exit and have them stopped.
    dist.destroy_process_group()


# --- processes that are spawned here ---


def _spawn(job: _Job, num_machines: int, machine_rank: int, dist_url: str) -> None:
    """Start the ranks of this machine, and stop them when any rank of the job fails."""
    host, port, server = _open_store(job, machine_rank, dist_url)
    ranks = _Ranks(job, host, port, machine_rank * job.local_size)
    watch = None
    if num_machines > 1:
        watch = Watch(
            f"the launcher of machine {machine_rank} (host {socket.gethostname()}, pid "
            f"{os.getpid()})",
            lambda: server or _connect(host, port, job.timeout),
            hub=machine_rank == 0,
            hosts=[host],
            fault_timeout=job.fault_timeout,
        )
    failure = None
    try:
        ranks.start()
        if watch is not None:
            watch.start(wait=False)
        with _termination_raises():
            failure = ranks.wait(watch)
            if watch is not None and failure is None:
                watch.close()
                failure = watch.verdict
    except BaseException as error:
        if watch is not None:
            reason = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else repr(error)
            watch.report(Failure(watch.name, f"was stopped by {reason}"))
        raise
    finally:
        with _ignoring(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            ranks.stop()
            if watch is not None:
                watch.close()
    if failure is not None:
        raise RankFailedError(failure, [other for other in ranks.failures if other != failure])
    if ranks.stopped:
        raise SystemExit(EXIT_STOPPED)


class _Ranks:
    """The ranks of one machine, children of this process.

    Attributes:
        failures: what they had to say, and how those ended that said nothing.
        stopped: whether they ended because they were asked to, with the status `EXIT_STOPPED`.
    """

    def __init__(self, job: _Job, host: str, port: int, first: int) -> None:
        self.failures: list[Failure] = []
        self.stopped = False
        self._job = job
        self._store_address = (host, port)
        self._first = first
        self._processes: list[Any] = []
        self._running: set[int] = set()
        self._reported: set[int] = set()
        self._guard: subprocess.Popen[bytes] | None = None
        # Datagrams: a message is there as a whole or not at all, also of a process that is killed.
        self._reports, self._sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reports.setblocking(False)

    def start(self) -> None:
        _start_resource_tracker()
        script = Path(__file__).with_name("guard.py")
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        context = multiprocessing.get_context(_START_METHOD)
        # They inherit it: Ctrl-C in the terminal is for this process, which ends them.
        with _ignoring(signal.SIGINT):
            for local_rank in range(self._job.local_size):
                arguments = (
                    self._job,
                    self._first + local_rank,
                    local_rank,
                    self._store_address,
                    os.getpid(),
                    self._sender,
                )
                process = context.Process(target=_spawned, args=arguments)
                process.start()
                self._processes.append(process)
                self._tell_guard(process.pid)
                self._running.add(local_rank)

    def wait(self, watch: Watch | None) -> Failure | None:
        """Wait until all have ended well, or the job failed; then return the first cause."""
        patience = min(2.0, self._job.fault_timeout / 10)
        until = None
        while self._running or self.failures:
            self._look()
            if watch is not None and watch.verdict is not None:
                return watch.verdict
            if not self.failures:
                continue
            # A closed connection is noticed before the end of the process that it led to.
            until = until or time.monotonic() + patience
            cause = first_cause(self.failures)
            if cause.weight == 0 or not self._running or time.monotonic() > until:
                return cause if watch is None else watch.report(cause)
        return None

    def _look(self) -> None:
        sentinels = [self._processes[i].sentinel for i in self._running]
        # Not without end: a data loader worker inherits its rank's sentinel, and may outlive it.
        multiprocessing.connection.wait([self._reports, *sentinels], timeout=0.3)
        # In this order: what a rank had to say before its end is there when that is seen.
        ended = {i: self._processes[i].exitcode for i in self._running}
        self._read_reports()
        for i, exit_code in ended.items():
            if exit_code is None:
                continue
            self._running.discard(i)
            if exit_code == EXIT_STOPPED:
                self.stopped = True
            elif exit_code != 0 and i not in self._reported:
                rank, pid = self._first + i, self._processes[i].pid
                who = name_rank(rank, self._job.world_size, i, pid)
                self.failures.append(Failure.exited(who, exit_code))

    def _read_reports(self) -> None:
        with suppress(BlockingIOError):
            while True:
                local_rank, fields = json.loads(self._reports.recv(2**20))
                self._reported.add(local_rank)
                self.failures.append(Failure(**fields))

    def stop(self) -> None:
        """End those that are left, and whatever they and those that failed have started."""
        if any(process.exitcode != 0 for process in self._processes):
            for process in self._processes:
                process.terminate()
            # Not join, which waits for the sentinel, and so for data loader workers.
            end = time.monotonic() + self._job.grace
            while any(p.exitcode is None for p in self._processes) and time.monotonic() < end:
                time.sleep(0.02)
            for process in self._processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.join(self._job.grace)
            self._read_reports()
        self._reports.close()
        self._sender.close()
        if self._guard is not None:
            self._tell_guard("done")
            self._guard.communicate()

    def _tell_guard(self, what: object) -> None:
        assert self._guard is not None and self._guard.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed it
            self._guard.stdin.write(f"{what}\n".encode())
            self._guard.stdin.flush()


def _start_resource_tracker() -> None:
    """The process that cleans up after processes that were stopped; here without a word about it.

    Its warning of "leaked semaphores", those of data loaders, would follow the message that counts.
    """
    before = os.environ.get("PYTHONWARNINGS")
    ignore = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ignore if before is None else f"{before},{ignore}"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _spawned(
    job: _Job,
    rank: int,
    local_rank: int,
    store_address: tuple[str, int],
    parent: int,
    reports: socket.socket,
) -> None:
    """A spawned process."""
    # Its own process group, so that data loader workers can be ended with it, or after it.
    os.setpgid(0, 0)
    _end_with(parent)
    try:
        _run(job, rank, local_rank, _connect(*store_address, job.timeout))
    except Exception as error:
        who = name_rank(rank, job.world_size, local_rank)
        failure = Failure.raised(who, error)
        reports.send(json.dumps([local_rank, asdict(failure)]).encode())
        sys.exit(1)


def _open_store(
    job: _Job, machine_rank: int, dist_url: str
) -> tuple[str, int, dist.TCPStore | None]:
    """Host and port of the job's store; on machine 0 it is opened in this process.

    Not in rank 0's, as it is to outlive it: the others would report the store's end as theirs.
    """
    if dist_url == "auto":
        host, port = "127.0.0.1", 0  # 0: the system picks a free one
    else:
        url = urlparse(dist_url)
        if url.scheme != "tcp" or url.hostname is None or url.port is None:
            raise ConfigError(f"--dist-url ({dist_url}) must be tcp://<host>:<port>, or auto")
        host, port = url.hostname, url.port
    if machine_rank > 0:
        return host, port, None
    try:
        server = dist.TCPStore(
            host, port, is_master=True, wait_for_workers=False, timeout=job.timeout
        )
    except dist.DistError as error:
        raise ConfigError(
            f"--dist-url {dist_url}: cannot listen on port {port} of this machine, which is to be "
            f"machine 0; take a free port ({error})"
        ) from error
    return host, server.port, server


def _connect(host: str, port: int, timeout: timedelta) -> dist.TCPStore:
    return dist.TCPStore(host, port, is_master=False, timeout=timeout)


# --- processes of torchrun's, or of another launcher that sets the same variables ---


def _run_under_torchrun(job: _Job) -> None:
    """Run one rank, and end it when another one fails: torchrun ends those of its machine only."""
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with(os.getppid())
    who = name_rank(rank, job.world_size, local_rank)
    store: dist.Store = next(rendezvous("env://", rank, job.world_size, timeout=job.timeout))[0]
    # torchrun's own store, perhaps, and a failed attempt's keys in it.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    watch = Watch(
        who,
        lambda: store,
        hub=rank == 0,
        hosts=_addresses() if rank == 0 else [os.environ["MASTER_ADDR"]],
        fault_timeout=job.fault_timeout,
        on_failure=lambda failure: _end_this_process(who, failure),
    )
    watch.start(wait=True)
    try:
        _run(job, rank, local_rank, store)
    except KeyboardInterrupt:
        watch.report(Failure(who, "was interrupted"))
        raise
    except SystemExit as stop:
        # All ranks stop so after a signal, together, and none should end another.
        if stop.code not in (0, None, EXIT_STOPPED):
            watch.report(Failure(who, f"ended with sys.exit({stop.code!r})"))
        watch.close()
        raise
    except Exception as error:
        failure = Failure.raised(who, error)
        first = watch.report(failure)
        if first != failure:
            _end_this_process(who, first)
        # For torchrun's summary, which without it has no traceback.
        get_error_handler().record_exception(error)
        print(f"{who} failed:", file=sys.stderr, flush=True)
        watch.close()
        # Threads, or a CUDA context, may hold up the end of an interpreter.
        last_resort = threading.Timer(job.grace, os._exit, [1])
        last_resort.daemon = True
        last_resort.start()
        raise
    watch.close()
    if watch.verdict is not None:
        _end_this_process(who, watch.verdict)


def _end_this_process(who: str, failure: Failure) -> NoReturn:
    """From any thread, whatever the others are inside of."""
    try:
        raise RankFailedError(failure)
    except RankFailedError as error:
        get_error_handler().record_exception(error)
    line = f"{failure.who} {failure.what}".splitlines()[0]
    print(f"{who} ends, as {line}", file=sys.stderr)
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _addresses() -> list[str]:
    """This machine, as the others can reach it: as it reaches the master, and by name."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    found = []
    with suppress(OSError):
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            found.append(str(probe.getsockname()[0]))
    return [*found, socket.gethostname()]


# --- both ---


def _end_with(parent: int) -> None:
    """Have this process killed when its parent ends. Linux; elsewhere it does nothing."""
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent:  # ended before that
        os._exit(1)


@contextmanager
def _termination_raises() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP, where they would just end this process, into SystemExit."""

    def terminate(number: int, frame: Any) -> NoReturn:
        name = signal.Signals(number).name
        print(f"{name}: stopping the processes of this machine", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    with _handling(numbers, terminate):
        yield


@contextmanager
def _ignoring(*numbers: signal.Signals) -> Iterator[None]:
    with _handling(numbers, signal.SIG_IGN):
        yield


@contextmanager
def _handling(numbers: Sequence[signal.Signals], handler: Any) -> Iterator[None]:
    # Only the main thread may, and only it is interrupted.
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if mine}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
