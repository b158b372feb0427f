"""Errors that the user can put right: one message and no traceback, in every command."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["ConfigError", "RankFailedError", "UserError", "did_you_mean", "exit_with_message"]


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


def did_you_mean(
    name: str, known: Iterable[str], otherwise: str | None = None, prefix: str = ""
) -> str:
    """The end of a message about a name that does not exist.

    Args:
        name: what was written.
        known: the names that exist.
        otherwise: the hint where none of them is near; None lists all.
        prefix: put before each suggestion, such as the key of a config's node.

    Returns:
        a hint with the nearest of ``known``.
    """
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(prefix + each for each in near)}?"
    return f"known: {', '.join(names)}" if otherwise is None else otherwise
