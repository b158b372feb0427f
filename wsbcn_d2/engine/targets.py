"""Lazy configs' calls: their arguments checked before anything is built, and errors of building."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.solver import build_optimizer
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig
from torch import nn

from ..errors import ConfigError, UserError

__all__ = ["build", "check_optimizer", "check_targets", "explain_building", "takes_argument"]

logger = logging.getLogger(__name__)


def check_targets(cfg: DictConfig) -> None:
    """Check that each ``_target_`` in a config exists and takes the arguments given to it.

    Raises:
        ConfigError: it does not; the message has the key and the arguments that there are.
    """
    for key, node in _calls(cfg, ""):
        try:
            target = _located(node)
        except Exception as error:  # of whatever module the name leads to
            name = node["_target_"]
            raise ConfigError(f"{key}._target_: cannot find {name}: {error}") from error
        parameters = _parameters(target)
        if parameters is None:
            continue
        for name in node:
            if name not in parameters and not str(name).startswith("_"):
                near = difflib.get_close_matches(str(name), parameters, n=1, cutoff=0.6)
                hint = f"; did you mean {_join(key, near[0])}?" if near else ""
                raise ConfigError(
                    f"{_join(key, name)}: {_name(target)} has no argument {name!r}{hint}\n"
                    f"  It takes: {', '.join(parameters)}"
                )


def check_optimizer(cfg: CfgNode | DictConfig) -> None:
    """Build the optimizer for one layer: torch has its own rules for learning rates and such.

    Raises:
        ConfigError: torch refuses an argument.
    """
    layer = nn.Linear(1, 1)
    node: Any
    try:
        if isinstance(cfg, CfgNode):
            key, node = "SOLVER", cfg.SOLVER
            build_optimizer(cfg, layer)
        else:
            key, node = "optimizer", cfg.get("optimizer")
            # What another function does with its arguments is its own business.
            target = _located(node) if isinstance(node, DictConfig) else None
            if inspect.isclass(target) and issubclass(target, torch.optim.Optimizer):
                arguments = {
                    name: node[name] for name in node if name not in ("_target_", "params")
                }
                target(layer.parameters(), **{k: instantiate(v) for k, v in arguments.items()})
    except Exception as error:
        guilty = [name for name in node if name != "params" and f" {node[name]} " in f" {error} "]
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
        what: the config's key of the part.
        node: the part, in a lazy config: the call in it that failed is then named.

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
        keys = [key for key, call in _calls(node, what) if _located(call) is target]
        key = keys[0] if len(keys) == 1 else what
        message = f"{key} cannot be built: {type(error).__name__}: {error}"
        if target is not None and (parameters := _parameters(target)):
            message += f"\n  {_name(target)} takes: {', '.join(parameters)}"
        raise ConfigError(f"{message}\n  (traceback in log.txt)") from error


def _located(call: DictConfig) -> Any:
    target = call["_target_"]
    return locate(target) if isinstance(target, str) else target


def takes_argument(call: DictConfig, name: str) -> bool:
    """Whether what a call in a lazy config names has an argument of this name."""
    return "_target_" in call and name in (_parameters(_located(call)) or [])


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
    """detectron2's ``instantiate``, its errors explained as `explain_building` does."""
    with explain_building(what, node):
        return instantiate(node)
