"""Training at the speed, and with the accidents, that a test needs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm

__all__ = ["AccidentProneRCNN", "SlowMapper"]


def have_accident(kind: str) -> None:
    """On rank 1, what ``kind`` says: ``raise``, ``kill`` (this process), or nothing if empty."""
    # A worker knows its rank from the environment; a process without SLURM, from its group.
    if not kind or int(os.environ.get("RANK", comm.get_rank())) != 1:
        return
    if "WSBCN_ATTEMPT" in os.environ:
        (Path(os.environ["WSBCN_ATTEMPT"]).parent / "accident").touch()
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError("the disk is on fire")


class AccidentProneRCNN(GeneralizedRCNN):
    """Args: what happens in the forward pass, and in that of an evaluation."""

    def __init__(self, *, train_accident: str = "", test_accident: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.accidents = {True: train_accident, False: test_accident}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        have_accident(self.accidents[self.training])
        return super().forward(batched_inputs)


class SlowMapper:
    """A dataset mapper that waits for each image.

    Args:
        mapper: the one that does the work.
        seconds: to wait.
        until: path of a file; once it is there, no more waiting.
        accident: of the process that loads an image.
    """

    def __init__(
        self,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        seconds: float = 0.0,
        until: str = "",
        accident: str = "",
    ) -> None:
        self._mapper = mapper
        self._seconds = seconds
        self._until = until
        self._accident = accident

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        have_accident(self._accident)
        if self._seconds > 0 and not os.path.isfile(self._until):
            time.sleep(self._seconds)
        return self._mapper(sample)
