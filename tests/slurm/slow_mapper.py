"""Training at the speed, and with the accidents, that a test needs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["SlowMapper"]


class SlowMapper:
    """A dataset mapper that waits for each image.

    Args:
        mapper: the one that does the work.
        seconds: to wait.
        until: path of a file; once it is there, no more waiting.
        failing_rank: rank whose images cannot be read; -1 for none.
    """

    def __init__(
        self,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        seconds: float = 0.0,
        until: str = "",
        failing_rank: int = -1,
    ) -> None:
        self._mapper = mapper
        self._seconds = seconds
        self._until = until
        self._failing_rank = failing_rank

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        if int(os.environ.get("RANK", "0")) == self._failing_rank:
            raise OSError("the disk is on fire")
        if self._seconds > 0 and not Path(self._until).exists():
            time.sleep(self._seconds)
        return self._mapper(sample)
