"""The calls in lazy configs: checks of their arguments, and errors of building explained."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig

from ..errors import ConfigError, UserError, did_you_mean

__all__ = [
    "build",
    "check_targets",
    "explain_building",
    "explain_optimizer",
    "locate_target",
    "takes_argument",
]

logger = logging.getLogger(__name__)


def check_targets(cfg: DictConfig) -> None:
    """Check that each ``_target_`` in a config exists and accepts its arguments.

    Raises:
        ConfigError: one does not; the message has its key and the arguments that it accepts.
    """
    for key, node in _calls(cfg, ""):
        try:
            target = locate_target(node)
        except Exception as error:  # of whatever module the name leads to
            name = node["_target_"]
            raise ConfigError(f"{key}._target_: cannot find {name}: {error}") from error
        parameters = _parameters(target)
        if parameters is None:
            continue
        for name in node:
            if name not in parameters and not str(name).startswith("_"):
                hint = did_you_mean(str(name), parameters, "", _join(key, ""))
                raise ConfigError(
                    f"{_join(key, name)}: {_name(target)} has no argument {name!r}"
                    f"{hint and f'; {hint}'}\n"
                    f"  It takes: {', '.join(parameters)}"
                )


@contextmanager
def explain_optimizer(key: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Turn an error of building an optimizer into one that names the config's key.

    torch has its own rules for learning rates and the like.

    Args:
        key: key of the optimizer in the config.
        arguments: its arguments; the one whose value is quoted in torch's message is named.

    Raises:
        ConfigError: instead of any error.
    """
    try:
        yield
    except Exception as error:
        guilty = [name for name in arguments if f" {arguments[name]} " in f" {error} "]
        key = _join(key, guilty[0]) if len(guilty) == 1 else key
        raise ConfigError(f"{key}: the optimizer cannot be built: {error}") from error


def _calls(node: Any, key: str) -> Iterator[tuple[str, DictConfig]]:
    """The nodes with a ``_target_``, and their keys."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield key, node
        for name in node:
            # A value that is missing, or an interpolation, is none of a call's business.
            child = node._get_node(name)
            yield from _calls(child, _join(key, name))
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from _calls(node._get_node(index), f"{key}[{index}]")


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _name(target: Any) -> str:
    return getattr(target, "__qualname__", str(target))


def _parameters(target: Any) -> list[str] | None:
    """Names of the arguments; None where it takes any, or does not say."""
    try:
        found = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in found):
        return None
    return [p.name for p in found if p.kind is not p.VAR_POSITIONAL]


@contextmanager
def explain_building(what: str, node: Any = None) -> Iterator[None]:
    """Turn an error of building a part of the config into one that names the part.

    Args:
        what: key of the part in the config.
        node: the part itself in a lazy config, so that the call that failed can be named.

    Raises:
        ConfigError: instead of any error but a `UserError`. The traceback goes to the log file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        logger.debug("%s cannot be built", what, exc_info=True)
        target = _innermost_target(error.__traceback__)
        keys = [key for key, call in _calls(node, what) if locate_target(call) is target]
        key = keys[0] if len(keys) == 1 else what
        message = f"{key} cannot be built: {type(error).__name__}: {error}"
        if target is not None and (parameters := _parameters(target)):
            message += f"\n  {_name(target)} takes: {', '.join(parameters)}"
        raise ConfigError(f"{message}\n  (traceback in log.txt)") from error


def locate_target(call: DictConfig) -> Any:
    """The function or class that is the target of a call in a lazy config."""
    target = call["_target_"]
    return locate(target) if isinstance(target, str) else target


def takes_argument(call: DictConfig, name: str) -> bool:
    """Whether the target of a call in a lazy config accepts an argument.

    Args:
        call: node with a ``_target_``.
        name: of the argument.
    """
    return "_target_" in call and name in (_parameters(locate_target(call)) or [])


def _innermost_target(traceback: TracebackType | None) -> Any:
    """What detectron2's ``instantiate`` was calling when an error was raised; None if nothing."""
    found = None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code is instantiate.__code__:
            found = frame.f_locals.get("cls")
        traceback = traceback.tb_next
    return found


def build(node: Any, what: str) -> Any:
    """detectron2's ``instantiate``, with the errors of `explain_building`.

    Args:
        node: part of a lazy config.
        what: its key.
    """
    with explain_building(what, node):
        return instantiate(node)
