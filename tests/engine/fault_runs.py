"""Runs with a fault in them: launchers in processes of their own, and who is left afterwards."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from wsbcn_d2.engine import launch

MARKER = "WSBCN_D2_TEST_RUN"
# Far below the 60 s that a run has, and enough for a machine that does other things too.
SOON = 40.0


class Slow(Dataset):
    """Of samples that take ``seconds`` each."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds)
        return index


def fault(kind: str, elsewhere: str, folder: Path, guilty: int = 1) -> None:
    """Body of every rank: one fails, as ``kind`` says, while the others are ``elsewhere``.

    Nobody fails if ``guilty`` is -1. Each writes its pid to ``rank<r>``, and the guilty one the
    time of the fault to ``fault``.
    """
    torch.set_num_threads(1)
    rank = comm.get_rank()
    comm.synchronize()
    _write(folder / f"rank{rank}", str(os.getpid()))
    if guilty < 0 and elsewhere == "in a collective":
        dist.recv(torch.zeros(1), src=(rank + 1) % comm.get_world_size())  # which does the same
    if rank != guilty:
        _wait(elsewhere)
    if kind == "killed from outside":
        dist.recv(torch.zeros(1), src=0)  # which is elsewhere
    if kind == "killed, with workers":
        _write(folder / "workers", "")
        iterator = iter(DataLoader(Slow(1000), num_workers=2))
        time.sleep(0.5)
        assert iterator is not None
    # Until the others are where they are to be.
    time.sleep(0.5)
    _write(folder / "fault", str(time.time()))
    if kind == "raises":
        raise KeyError("the original error")
    if kind == "exits":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(where: str) -> None:
    if where == "in a collective":
        dist.barrier()
        raise AssertionError("not reached")
    if where == "in the data loader":
        next(iter(DataLoader(Slow(1000), num_workers=2)))
    if where == "reading":
        for _ in DataLoader(Slow(0.1), num_workers=2):
            pass
    if where == "busy":
        sum(range(10**13))  # without a look at signals, or at other threads
    raise AssertionError(where)


def finish(folder: Path) -> None:
    """Body of ranks that do nothing wrong, but take different times."""
    comm.synchronize()
    time.sleep(comm.get_rank())
    _write(folder / f"rank{comm.get_rank()}", "")


def wait_for_rank_0(seconds: float) -> None:
    """Rank 0 holds Python's lock for longer than the fault time-out; the others wait for it."""
    torch.set_num_threads(1)
    comm.synchronize()
    end = time.monotonic() + seconds
    while comm.get_rank() == 0 and time.monotonic() < end:
        sum(range(10**8))
    comm.synchronize()


def _write(path: Path, text: str) -> None:
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


class Run:
    """A process in its own session that calls `launch` as train_net.py does.

    Forked, which takes no time for imports; so are its ranks, unless ``spawn``.

    Args:
        folder: for its output, and for the files of the bodies.
        body: what its ranks run, with ``args``.
        options: of `launch`.
        environment: set in it.
    """

    def __init__(
        self,
        folder: Path,
        body: Callable[..., None],
        args: tuple[Any, ...],
        *,
        name: str = "launcher",
        spawn: bool = False,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.output_file = folder / f"{name}.txt"
        context = multiprocessing.get_context("fork")
        self.process = context.Process(
            target=_launch,
            args=(str(self.output_file), body, args, spawn, environment or {}, options),
        )
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, within: float = 150.0) -> int:
        """Its exit code."""
        # Not join: it waits for all that have inherited a pipe, which is what may be left.
        if not wait_until(lambda: self.process.exitcode is not None, within):
            left = [Path(f"/proc/{pid}/cmdline").read_text() for pid in self.left()]
            self.stop()
            raise AssertionError(f"still running: {left}\n{self.output}")
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def left(self) -> list[int]:
        """Processes of this run that are alive."""
        return [pid for pid, session in _sessions() if session == self.pid and pid != self.pid]

    def stop(self) -> None:
        for pid in [self.pid, *self.left()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _sessions() -> list[tuple[int, int]]:
    """Pid and session of each living process."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        state, _, _, session = stat.rpartition(")")[2].split()[:4]
        if state != "Z":
            found.append((int(folder.name), int(session)))
    return found


def marked(value: str) -> list[int]:
    """Living processes in whose environment `MARKER` has this value."""
    found = []
    for pid, _ in _sessions():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"{MARKER}={value}".encode() in environment.split(b"\0"):
            found.append(pid)
    return found


def none_left(look: Callable[[], list[int]], within: float = 10.0) -> bool:
    """Whether all are gone soon. The children of a killed process end a little later than it."""
    return wait_until(lambda: not look(), within)


def wait_until(condition: Callable[[], Any], within: float = SOON) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _launch(
    output: str,
    body: Callable[..., None],
    args: tuple[Any, ...],
    spawn: bool,
    environment: dict[str, str],
    options: dict[str, Any],
) -> None:
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.update(environment)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = sys.modules["wsbcn_d2.engine.launch"]
    if not spawn:
        module._START_METHOD = "fork"
    try:
        launch(body, args=args, device="cpu", **options)
    except KeyboardInterrupt:
        print("interrupted")
        code = 130
    except SystemExit as error:
        code = error.code
    except module.RankFailedError as error:
        print(f"error: {error}")
        code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank_line(rank: int, world_size: int, local_rank: int, pid: str) -> str:
    """A pattern of how messages name a rank."""
    return re.escape(f"rank {rank} of {world_size} (local rank {local_rank}, host ") + (
        rf"\S+, pid {pid}\)"
    )
