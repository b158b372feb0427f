"""Errors that the user can put right: one message and no traceback, in every command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ConfigError", "RankFailedError", "UserError", "exit_with_message"]


class UserError(Exception):
    """Base class of errors that are not a defect of the program.

    The message is all that the user gets to see: what is wrong, where (config key, file, image
    id), what is allowed or what to do. Subclasses take the message as their only argument, so that
    they can be pickled on their way from one process to another.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if "\nOriginal Traceback" not in text:
            return text
        # Re-raised by torch's DataLoader, with the worker's traceback before the message.
        return text.rpartition(f"{type(self).__name__}: ")[2].rstrip()


class ConfigError(UserError, ValueError):
    """Something in the command line or the config."""


class RankFailedError(RuntimeError):
    """A process of a run failed, and not with a `UserError`: the message has its traceback."""


@contextmanager
def exit_with_message(program: str) -> Iterator[None]:
    """Exit with a message and no traceback of this process, for a command's ``main``.

    Applies to `UserError`, `RankFailedError` and Ctrl-C.

    Args:
        program: name of the command, which starts the message.

    Raises:
        SystemExit: with status 1 after an error, 130 after Ctrl-C.
    """
    try:
        yield
    except (UserError, RankFailedError) as error:
        sys.exit(f"{program}: error: {error}")
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
