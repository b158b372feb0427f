"""The checkpoints in a run's folder, and the order in which a resume tries them."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from pathlib import Path

__all__ = ["numbered_checkpoints", "resumable_checkpoints", "tagged_checkpoint"]


def resumable_checkpoints(folder: str) -> list[str]:
    """Files that a run may resume from, the best first. They are not opened."""
    age = {}  # (time of writing, iteration) by path
    for path, iteration in numbered_checkpoints(folder).items():
        # An evaluation may look while the training deletes an old one.
        with suppress(FileNotFoundError):
            age[path] = (os.stat(path).st_mtime_ns, iteration)
    newest_first = sorted(age, key=age.__getitem__, reverse=True)
    tagged = tagged_checkpoint(folder)
    if not os.path.isfile(tagged):
        return newest_first
    # last_checkpoint decides (a user may have set it back), unless the process was killed
    # between completing a checkpoint and naming it there.
    since = os.stat(os.path.join(folder, "last_checkpoint")).st_mtime_ns
    after = age.get(tagged, (0, math.inf))[1]
    untagged = [path for path in newest_first if age[path][0] >= since and age[path][1] > after]
    return list(dict.fromkeys([*untagged, tagged, *newest_first]))


def tagged_checkpoint(folder: str) -> str:
    """Path of the file named in last_checkpoint, which need not exist; "" if it names none."""
    try:
        name = Path(folder, "last_checkpoint").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    # After a loss of power a file may be of the right length and all zeros.
    return os.path.join(folder, name) if name.isprintable() and name else ""


def numbered_checkpoints(folder: str) -> dict[str, float]:
    """Iterations of the ``model_….pth`` files by path; infinity for ``model_final.pth``."""
    if "://" in folder or not os.path.isdir(folder):
        return {}
    numbered = {}
    for name in os.listdir(folder):
        match = re.fullmatch(r"model_(?:(\d+)|final)\.pth", name)
        if match is not None:
            number = math.inf if match[1] is None else int(match[1])
            numbered[os.path.join(folder, name)] = number
    return numbered
