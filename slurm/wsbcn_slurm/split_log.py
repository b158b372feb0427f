"""Copy srun's labelled output to standard output and, without labels, to a file for each rank."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import BinaryIO

_LABEL = re.compile(rb" *(\d+): ?")


def split(source: BinaryIO, merged: BinaryIO, folder: Path) -> None:
    """Until ``source`` ends; ``rank_<r>.txt`` in ``folder`` are appended to."""
    files: dict[int, BinaryIO] = {}
    for line in source:
        merged.write(line)
        merged.flush()
        match = _LABEL.match(line)
        if match is not None:
            rank = int(match[1])
            if rank not in files:
                path = folder / f"rank_{rank}.txt"
                files[rank] = path.open("ab", buffering=0)
            files[rank].write(line[match.end() :])


if __name__ == "__main__":
    split(sys.stdin.buffer, sys.stdout.buffer, Path(sys.argv[1]))
