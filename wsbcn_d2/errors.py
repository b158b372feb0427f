"""Errors that the user can put right: one message and no traceback, in every command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ConfigError", "UserError", "exit_with_message"]


class UserError(Exception):
    """Base class of errors that are not a defect of the program.

    The message is all that the user gets to see: what is wrong, where (config key, file, image
    id), what is allowed or what to do. Subclasses take the message as their only argument, so that
    they can be pickled on their way from one process to another.
    """


class ConfigError(UserError, ValueError):
    """Something in the command line or the config."""


@contextmanager
def exit_with_message(program: str) -> Iterator[None]:
    """Exit with a message and no traceback on a `UserError` or Ctrl-C; for a command's ``main``.

    Args:
        program: name of the command, which starts the message.

    Raises:
        SystemExit: with status 1 after a `UserError`, 130 after Ctrl-C.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"{program}: error: {error}")
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
