"""A script that `launch` starts beside itself: it outlives a killed launcher and ends the rest.

The system ends the ranks with the launcher. But data loader workers that are still starting when
their rank is killed take the next parent they get for it, and wait for its batches for ever.

Reads process groups, one a line, from its input. When that ends without "done", it kills them.
Standard library only, and run by its path: it must be there at once, and take no memory.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    lines = sys.stdin.read().split()
    if lines[-1:] == ["done"]:
        return
    for group in lines:
        with suppress(ProcessLookupError):
            os.killpg(int(group), signal.SIGKILL)


if __name__ == "__main__":
    main()
