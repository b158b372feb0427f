"""The config under which a checkpoint was written, compared with that of a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from omegaconf import DictConfig, ListConfig, ValueNode

__all__ = ["config_changes", "describe_changes", "flatten_config"]

# Their values come with the optimizer's state, unless train.resume.new_hyperparameters is set.
_OPTIMIZER_KEYS = ("optimizer.", "SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV",
                   "SOLVER.WEIGHT_DECAY", "SOLVER.BIAS_LR_FACTOR")  # fmt: skip
# How a run is carried out and written down: no difference to what is trained.
_OF_THE_MACHINE = ("train.output_dir", "OUTPUT_DIR", "train.device", "MODEL.DEVICE", "VERSION",
                   "train.resume.", "SOLVER.RESUME.")  # fmt: skip
_LONGEST = 60


def flatten_config(cfg: CfgNode | DictConfig) -> dict[str, str]:
    """The leaves of a config as text, by key: ``{"optimizer.lr": "0.02", …}``.

    Keys that do not affect the training, such as the output folder, are left out, so that equal
    runs have equal checkpoints.
    """
    found: dict[str, str] = {}
    _flatten(cfg, "", found)
    return {key: value for key, value in found.items() if not key.startswith(_OF_THE_MACHINE)}


def _flatten(node: Any, key: str, found: dict[str, str]) -> None:
    children: list[tuple[str, Any]] | None = None
    if isinstance(node, CfgNode):
        children = [(f".{name}", value) for name, value in node.items()]
    elif isinstance(node, DictConfig):
        # Not by item: a node may be missing, or an interpolation that nothing resolves.
        children = [("." + str(name), node._get_node(name)) for name in node]
    elif isinstance(node, ListConfig):
        children = [(f"[{index}]", node._get_node(index)) for index in range(len(node))]
    if children:
        for name, child in children:
            _flatten(child, f"{key}{name}".lstrip("."), found)
        return
    value = node._value() if isinstance(node, ValueNode) else node
    if callable(value) and hasattr(value, "__qualname__"):
        value = f"{value.__module__}.{value.__qualname__}"
    found[key] = value if isinstance(value, str) else repr(value)


def config_changes(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The values that differ between two configs.

    Args:
        old: the checkpoint's, from `flatten_config`.
        new: the run's.

    Returns:
        old and new value by key; "(none)" where one of them lacks the key.
    """
    keys = dict.fromkeys([*old, *new])
    pairs = {key: (old.get(key, "(none)"), new.get(key, "(none)")) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def describe_changes(
    changes: Mapping[str, tuple[str, str]], new_hyperparameters: bool
) -> list[str]:
    """One line per change, with both values and the one that takes effect.

    Args:
        changes: result of `config_changes`.
        new_hyperparameters: whether the optimizer takes its hyper-parameters from the config.
    """
    lines = []
    for key, (old, new) in changes.items():
        kept = key.startswith(_OPTIMIZER_KEYS) and not new_hyperparameters
        # Another kind of optimizer cannot take the checkpoint's.
        kept = kept and "optimizer._target_" not in changes
        effect = "the checkpoint's is used" if kept else "the new one is used"
        lines.append(f"{key}: {_short(old)} -> {_short(new)} ({effect})")
    return lines


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
