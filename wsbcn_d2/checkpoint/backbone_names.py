"""Where a backbone is: in the model of a checkpoint, and in the one that loads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["move_backbone"]

_PLACES = ("backbone.bottom_up.", "backbone.")


def move_backbone(checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Rename the backbone in a checkpoint as the model has it, in place.

    A ResNet is ``backbone`` in a classifier, a segmentation network and a C4 detector, and
    ``backbone.bottom_up`` in a detector with FPN. Each can start from another's checkpoint.

    Args:
        checkpoint: the state dict under ``"model"``, `describe_model`'s record under ``"norms"``.
        model: the model that is to load it.
    """
    theirs, ours = _place(checkpoint["model"]), _place(model.state_dict())
    if not theirs or not ours or theirs == ours:
        return
    checkpoint["model"] = _moved(checkpoint["model"], theirs, ours)
    record = checkpoint.get("norms")
    if record:
        kinds = {key: _moved(record[key], theirs, ours) for key in ("norms", "convs")}
        checkpoint["norms"] = {**record, **kinds}


def _place(names: Iterable[str]) -> str:
    found = [next((place for place in _PLACES if name.startswith(place)), "") for name in names]
    return max(found, key=len, default="")


def _moved(named: Mapping[str, Any], theirs: str, ours: str) -> dict[str, Any]:
    return {
        ours + name.removeprefix(theirs) if name.startswith(theirs) else name: value
        for name, value in named.items()
    }
