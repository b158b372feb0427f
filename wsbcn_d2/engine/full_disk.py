"""What a disk that is full does to a run: logs go on without a file, everything else says where.

A line of a log is worth less than the training, which the user may yet save by making room. If
nobody does, the next checkpoint ends the run.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.engine import default_writers
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter

from ..checkpoint.files import disk_error, root_os_error

__all__ = ["PatientWriter", "explaining_full_disk", "keep_logging", "patient_writers"]

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GOING_ON = (
    "  The training goes on, and this file lacks what follows until there is room. The next "
    "checkpoint ends the run if it cannot be saved."
)


class PatientWriter(EventWriter):
    """Another writer, whose failure to write is one error in the log and not the run's end.

    Args:
        writer: detectron2's ``JSONWriter``, for example. TensorBoard's gives up at the first error.
        path: what the writer writes, for the message.
    """

    def __init__(self, writer: EventWriter, path: str) -> None:
        self._writer = writer
        self._path = path
        self._failing = False

    def write(self) -> None:
        self._try(self._writer.write)

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            if not self._failing:
                logger.error("%s\n%s", disk_error(self._path, error), _GOING_ON)
            self._failing = True
        else:
            if self._failing:
                logger.warning("%s can be written again", self._path)
            self._failing = False


def patient_writers(folder: str, max_iter: int) -> list[EventWriter]:
    """detectron2's ``default_writers``, those that write files as `PatientWriter`."""
    files = {JSONWriter: "metrics.json", TensorboardXWriter: "events.out.tfevents.*"}
    return [
        PatientWriter(writer, os.path.join(folder, files[type(writer)]))
        if type(writer) in files
        else writer
        for writer in default_writers(folder, max_iter)
    ]


def keep_logging(folder: str) -> None:
    """Have the loggers' files in ``folder`` fail with one message, not a traceback for each line.

    Call it when the loggers are set up.
    """
    root = os.path.abspath(folder) + os.sep
    reported: set[str] = set()
    for known in list(logging.root.manager.loggerDict.values()):
        for handler in getattr(known, "handlers", []):
            path = os.path.abspath(str(getattr(getattr(handler, "stream", None), "name", "")))
            if path.startswith(root):
                handler.handleError = _Report(handler.handleError, path, reported)


class _Report:
    """A handler's ``handleError``, which is called while the exception is being handled."""

    def __init__(self, otherwise: Any, path: str, reported: set[str]) -> None:
        self._otherwise = otherwise
        self._path = path
        self._reported = reported

    def __call__(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self._otherwise(record)
        elif self._path not in self._reported:
            self._reported.add(self._path)
            print(f"ERROR: {disk_error(self._path, error)}\n{_GOING_ON}", file=sys.stderr)


@contextmanager
def explaining_full_disk(folder: str) -> Iterator[None]:
    """Say how full ``folder`` is in an error of a full disk that leaves this block.

    Raises:
        OSError: with that, where the original one has no path.
    """
    try:
        yield
    except Exception as error:
        cause = root_os_error(error)
        if cause is None or cause.errno not in _FULL or "\n" in str(error):
            raise
        path = cause.filename or os.path.join(folder, "…")
        raise OSError(cause.errno, disk_error(str(path), cause)) from error
