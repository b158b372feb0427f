"""Atomic writing of files, errors of full disks, and detection of damaged archives."""

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
    """Replace a file atomically: a reader sees the old file or the new one.

    The new file is written to ``<path>.tmp`` and flushed to disk before it is renamed, and so is
    its directory entry when the block ends, so that it survives a loss of power. When the block
    raises, the old file is unchanged and the temporary one is removed; only a killed process
    leaves it behind.
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
    """Describe the damage to a zip archive, such as a checkpoint; "" if there is none.

    Reads the whole file. Every record has a CRC-32, which ``torch.save`` writes and ``torch.load``
    does not check: flipped bits in a weight would load as another weight.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except Exception as error:  # of many kinds, depending on the bytes that are wrong
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        return f"{error or type(error).__name__} ({size:,} bytes)"
    return "" if record is None else f"wrong checksum of {record}"


def root_os_error(error: BaseException | None) -> OSError | None:
    """The ``OSError`` that caused an error, which torch raises as one of its own; None if none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def disk_error(path: str, error: OSError) -> str:
    """The message for a file that cannot be written, with the free space and what to do.

    Args:
        path: of the file.
        error: raised when it was written.
    """
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
