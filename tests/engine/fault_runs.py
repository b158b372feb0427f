"""Runs in which something fails: launchers in sessions of their own, and who is left afterwards."""

from __future__ import annotations

import multiprocessing
import os
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
from wsbcn_d2.errors import UserError, exit_with_message


class Slow(Dataset):
    """A sample takes ``seconds``; with 0, it is an error of the user."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> int:
        if self.seconds == 0:
            raise UserError("no image\n  Repair the dataset")
        time.sleep(self.seconds)
        return index


def fault(kind: str, elsewhere: str, folder: Path, guilty: int = 1) -> None:
    """Body of every rank: ``guilty`` fails, as ``kind`` says, while the others are ``elsewhere``.

    Nobody fails if ``guilty`` is -1. When all are where they should be, each writes its pid to
    ``rank<r>``.
    """
    torch.set_num_threads(1)
    rank = comm.get_rank()
    comm.synchronize()
    (folder / f"rank{rank}").write_text(str(os.getpid()))
    if rank != guilty:
        _wait(elsewhere)
    if kind == "killed, with workers":
        iterator = iter(DataLoader(Slow(1000), num_workers=2))
        assert iterator is not None
    time.sleep(0.5)  # until the others are there
    if kind == "raises":
        raise KeyError("the original error")
    if kind == "raises UserError":
        raise UserError("no image\n  Repair the dataset")
    if kind == "raises UserError in a worker":
        next(iter(DataLoader(Slow(0), num_workers=1)))
    if kind == "exits":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(where: str) -> None:
    if where == "in a collective":
        dist.recv(torch.zeros(1), src=(comm.get_rank() + 1) % comm.get_world_size())
    if where == "reading":
        for _ in DataLoader(Slow(0.1), num_workers=2):
            pass
    raise AssertionError(where)


def finish(folder: Path) -> None:
    """Body of ranks that do nothing wrong, but take different times."""
    comm.synchronize()
    time.sleep(comm.get_rank())
    (folder / f"rank{comm.get_rank()}").touch()


class Run:
    """A process in its own session that calls `launch` as train_net.py does.

    It is forked, and so are its ranks, which saves the seconds of importing torch.

    Args:
        folder: for its output, and for the files of the bodies.
        body: what its ranks run, with ``args``.
        options: of `launch`.
    """

    def __init__(
        self,
        folder: Path,
        body: Callable[..., None],
        args: tuple[Any, ...],
        *,
        name: str = "launcher",
        **options: Any,
    ) -> None:
        self.output_file = folder / f"{name}.txt"
        target = (str(self.output_file), body, args, options)
        self.process = multiprocessing.get_context("fork").Process(target=_launch, args=target)
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    def end(self, within: float = 50.0) -> int:
        """Its exit code."""
        # Not join: it waits for all that have inherited a pipe, which is what may be left.
        if not wait_until(lambda: self.process.exitcode is not None, within):
            left = [Path(f"/proc/{pid}/cmdline").read_text() for pid in self.left()]
            self.stop()
            raise AssertionError(f"still running: {left}\n{self.output}")
        return self.process.exitcode or 0

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def left(self) -> list[int]:
        """Living processes of this run besides the launcher."""
        return [pid for pid in living(self.pid) if pid != self.pid]

    def stop(self) -> None:
        for pid in living(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def living(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            stat = (folder / "stat").read_text()
            state, _, _, its_session = stat.rpartition(")")[2].split()[:4]
            if state != "Z" and int(its_session) == session:
                found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], Any], within: float) -> bool:
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
    output: str, body: Callable[..., None], args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["wsbcn_d2.engine.launch"]._START_METHOD = "fork"  # type: ignore[attr-defined]
    code: Any = 0
    try:
        with exit_with_message("command"):
            launch(body, args=args, device="cpu", **options)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 2
    if isinstance(code, str):
        print(code)
        code = 1
    sys.stdout.flush()
    os._exit(code)
