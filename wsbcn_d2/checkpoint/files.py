"""Files that appear whole or not at all, what a full disk has to say, and damaged archives."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["disk_error", "find_damage", "replacing", "root_os_error"]


@contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """Write ``path`` through ``<path>.tmp``, so that a reader sees the old file or the new one.

    The new file is on the disk, not only in the system's cache, before it takes the old one's
    place, and its name is on the disk too when the block ends: that holds through a loss of power.
    When the block fails, the old file is as it was and the temporary one is gone; only a killed
    process leaves that behind.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    # Not all file systems can, and the file itself is safe by now.
    with suppress(OSError):
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def find_damage(path: str) -> str:
    """What is wrong with the zip archive at ``path``, such as a checkpoint; "" if nothing is.

    Reads all of it. Every record carries a CRC-32, which ``torch.save`` writes and ``torch.load``
    does not look at: bits that flipped in a weight would load as another weight.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except Exception as error:  # of many kinds, depending on the bytes that are wrong
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        return f"{error or type(error).__name__} ({size:,} bytes)"
    return "" if record is None else f"wrong checksum of {record}"


def root_os_error(error: BaseException | None) -> OSError | None:
    """The ``OSError`` that ``error`` is or came from, as torch hides it behind one of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def disk_error(path: str, error: OSError) -> str:
    """What failed at which path, how much room there is, and what to do; two lines."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        usage = shutil.disk_usage(folder)
        space = f"{usage.free / 2**20:,.1f} MiB of {usage.total / 2**20:,.0f} MiB free in {folder}"
    except OSError:
        space = f"no free space to be read of {folder}"
    return (
        f"cannot write {path}: {error.strerror or error}\n"
        f"  {space}; make room there (older checkpoints, a quota), or take another output folder"
    )
