"""What a rank that failed has to say, and which of several failures was the first cause."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

import torch.distributed as dist

from ..errors import UserError

__all__ = [
    "Failure",
    "RankFailedError",
    "first_cause",
    "is_consequence",
    "name_rank",
    "shorten_consequences",
]

# Of RuntimeErrors, which is what gloo and parts of NCCL raise.
_CONNECTION = re.compile(r"\bgloo\b|\bNCCL\b|Connection (closed|reset) by peer", re.IGNORECASE)
# Also as JSON it must fit into a datagram, some 200 kB.
_MAX_DETAILS = 20_000
_HINTS = {
    "SIGKILL": "often the out-of-memory killer (see dmesg) or the scheduler",
    "SIGBUS": "often a full /dev/shm: fewer data loader workers, or more shared memory",
    "SIGSEGV": "a fault in compiled code; PYTHONFAULTHANDLER=1 shows where",
}


@dataclass(frozen=True)
class Failure:
    """How one process of a job ended.

    Attributes:
        who: the process, as `name_rank` puts it.
        what: what happened, in the rest of that sentence.
        details: the traceback, or "".
        weight: 0 for what may well be the cause, 1 for a process that is gone and nobody knows
            why, 2 for what follows from another's end, such as a closed connection.
    """

    who: str
    what: str
    details: str = ""
    weight: int = 0

    @classmethod
    def raised(cls, who: str, error: BaseException) -> Failure:
        """By an exception, which is being handled."""
        lines = traceback.format_exception(error)
        what = f"raised {''.join(traceback.format_exception_only(error)).strip()}"
        return cls(
            who,
            what[:1000],
            "" if isinstance(error, UserError) else "".join(lines)[-_MAX_DETAILS:].rstrip(),
            2 if is_consequence(error) else 0,
        )

    @classmethod
    def exited(cls, who: str, exit_code: int) -> Failure:
        """Without a word: by a signal (a negative exit code), or ``os._exit``."""
        if exit_code >= 0:
            return cls(who, f"ended with exit code {exit_code}")
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
        hint = f" ({_HINTS[name]})" if name in _HINTS else ""
        # NCCL's own watchdog aborts a process when another one is gone.
        return cls(who, f"was killed by {name}{hint}", weight=1 if name == "SIGABRT" else 0)

    @classmethod
    def gone(cls, who: str) -> Failure:
        """As seen from another machine."""
        return cls(
            who,
            "is gone without a word: killed, or its machine is down or cut off; see its own output",
            weight=1,
        )


class RankFailedError(UserError, RuntimeError):
    """A process of the job failed, and the others were stopped.

    Args:
        failure: the first cause.
        others: what other processes had to say, in one line each.
    """

    def __init__(self, failure: Failure, others: Iterable[Failure] = ()) -> None:
        self.failure = failure
        lines = [f"{failure.who} {failure.what}"]
        if failure.details:
            lines += ["", failure.details]
        rest = [f"  {other.who} {_one_line(other.what)}" for other in others]
        if rest:
            lines += ["", "As a consequence:", *rest]
        lines += ["", "All other processes were stopped."]
        super().__init__("\n".join(lines))


def _one_line(text: str) -> str:
    first = text.splitlines()[0]
    return first if len(first) <= 160 else f"{first[:160]}…"


def first_cause(failures: Iterable[Failure]) -> Failure:
    """The one to show: the earliest of the least weight. ``failures``: in the order they came."""
    return min(failures, key=lambda failure: failure.weight)


def is_consequence(error: BaseException) -> bool:
    """Whether ``error`` says no more than that another process is not there any more."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, dist.DistError):
            return True
        if isinstance(seen, RuntimeError) and _CONNECTION.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def name_rank(rank: int, world_size: int, local_rank: int, pid: int | None = None) -> str:
    """A process of this machine, for messages."""
    pid = os.getpid() if pid is None else pid
    return (
        f"rank {rank} of {world_size} (local rank {local_rank}, host {socket.gethostname()}, "
        f"pid {pid})"
    )


def shorten_consequences() -> None:
    """Log one line in the place of a traceback where another process's end ended this training.

    detectron2 logs the exception that leaves its loop; the one that matters is another rank's.
    """
    logging.getLogger("detectron2.engine.train_loop").addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        return False  # ends the command, which reports it
    if error is not None and is_consequence(error):
        reason = _one_line(str(error))
        record.msg = f"{record.getMessage()} another process is gone, or unreachable: {reason}"
        record.args = ()
        record.exc_info = None
    return True
