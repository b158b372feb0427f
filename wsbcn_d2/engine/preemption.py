"""Stopping on a signal: save a checkpoint after the current step, then exit with a status."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

__all__ = ["EXIT_STOPPED", "StopOnSignal", "TrainingStopped", "forward_signals"]

logger = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h: "the user is invited to retry later".
EXIT_STOPPED = 75


class TrainingStopped(SystemExit):
    """A signal stopped the training; ``--resume`` continues from its checkpoint.

    A `SystemExit`: unless it is caught, the process exits with the status `EXIT_STOPPED` (75).

    Args:
        iteration: index of the last completed iteration.
        checkpoint: path of the checkpoint saved after it.
    """

    def __init__(self, iteration: int, checkpoint: str) -> None:
        super().__init__(EXIT_STOPPED)
        self.iteration = iteration
        self.checkpoint = checkpoint


class StopOnSignal(HookBase):
    """Stops all ranks after the same step, once one of them has received a signal.

    The signal may reach the ranks at different times, or only one of them. After each step an
    ``all_reduce`` of one number over gloo, on the CPU so that no GPU waits, tells whether any rank
    has received it. After the last step there is nothing to stop.

    Args:
        signals: signal numbers such as ``signal.SIGUSR2``. Their handlers are replaced during the
            training and restored after it.
        save: saves a checkpoint and returns its path. All ranks call it, and it must not return
            before the checkpoint exists.

    Raises:
        TrainingStopped: in ``after_step``, on all ranks, once the checkpoint is saved.
    """

    def __init__(self, signals: Sequence[int], save: Callable[[], str]) -> None:
        self._signals = signals
        self._save = save
        self._received: int = 0
        self._previous: dict[int, Any] = {}

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in self._signals:
                self._previous[signum] = signal.signal(signum, self._receive)

    def _receive(self, signum: int, _: Any) -> None:
        self._received = signum

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if not self._signals or iteration + 1 >= self.trainer.max_iter:
            return
        received = self._received
        if comm.get_world_size() > 1:
            flag = torch.tensor([received])
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=comm._get_global_gloo_group())
            received = int(flag)
        if not received:
            return
        name = signal.Signals(received).name
        logger.info("%s received: saving a checkpoint after iteration %d", name, iteration)
        path = self._save()
        logger.info("Stopped after iteration %d; --resume goes on from %s", iteration, path)
        raise TrainingStopped(iteration, path)

    def after_train(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}


@contextmanager
def forward_signals(signals: Sequence[int]) -> Iterator[None]:
    """A context in which this process forwards signals to its child processes.

    For the process that spawned the ranks, which are the ones that a signal is meant for.

    Args:
        signals: signal numbers; their handlers are restored on exit.
    """

    def forward(signum: int, _: Any) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signum)

    previous = {signum: signal.signal(signum, forward) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
