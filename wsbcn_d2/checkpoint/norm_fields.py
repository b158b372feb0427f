"""The tensors of a norm layer, from the published names and shapes to the ones loaded here."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..modeling.norm_registry import build_norm
from ..norms.sparsemax import circumradius

__all__ = ["convert_fields", "norm_kind", "split_norms"]

_CONTROLS = {"mean_weight", "var_weight"}
# The kinds that weights are published of; those of their families have the same tensors.
_PUBLISHED = ("GN", "BN", "SN", "SN_IN_LN", "SSN", "BatchBCN")


@functools.cache
def _example(kind: str) -> nn.Module:
    norm = build_norm(kind, 32)
    assert norm is not None
    return norm


def _fields(kind: str) -> set[str]:
    """Names of a norm's tensors; published ones have no counters."""
    return {key for key in _example(kind).state_dict() if "num_batches" not in key}


def _num_controls(kind: str) -> int:
    """How many statistics the control parameters weigh."""
    return _example(kind).get_parameter("mean_weight").shape[-1]


def split_norms(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Take the norms' tensors out of ``tensors``.

    Returns:
        by the norm's name and the field's.
    """
    norms: dict[str, dict[str, Tensor]] = {}
    for key in [key for key in tensors if ".norm." in key]:
        conv, _, name = key.partition(".norm.")
        # BCN's inner normalization is `bn` in the release's README and `pbn` in its code.
        name = name.replace("pbn.", "bn.")
        norms.setdefault(f"{conv}.norm", {})[name] = tensors.pop(key)
    return norms


def norm_kind(name: str, fields: Mapping[str, Tensor]) -> str:
    """The kind that has exactly these fields.

    Args:
        name: of the norm, for messages.
        fields: the norm's tensors.

    Raises:
        ValueError: none has.
    """
    for kind in _PUBLISHED:
        if set(fields) == _fields(kind):
            return kind
    kinds = "; ".join(f"{', '.join(sorted(_fields(kind)))} ({kind})" for kind in _PUBLISHED)
    raise ValueError(
        f"{name} has {', '.join(sorted(fields))}, which no known norm has; the norms have {kinds}"
    )


def convert_fields(name: str, kind: str, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shapes as in this package: ``(C,)`` for (1, C, 1, 1) and (1, C, 1), ``(G,)`` for (1, G, 1).

    SSN's flags become indices (see `SparseSwitchNorm2d`), its radius a number.

    Args:
        name: of the norm, for messages.
        kind: from `norm_kind`.
        fields: the norm's tensors.

    Raises:
        ValueError: another shape, or an SSN ratio that is marked as fixed and is not one-hot.
    """
    converted = {}
    for key, tensor in fields.items():
        if key in _CONTROLS:
            if tensor.shape[-1] != _num_controls(kind):
                raise ValueError(
                    f"{name}.{key} has shape {tuple(tensor.shape)}; {kind} has "
                    f"{_num_controls(kind)} control parameters"
                )
            converted[key] = tensor.clone()
        elif key in ("mean_fixed", "var_fixed"):
            control = fields[key.replace("fixed", "weight")]
            converted[key] = _fixed_index(f"{name}.{key}", tensor, control)
        elif key == "radius":
            # The release goes on to 1; beyond the circumradius nothing changes.
            limit = circumradius(_num_controls(kind))
            converted[key] = tensor.reshape(()).clamp(max=limit)
        elif tensor.numel() != max(tensor.shape, default=1):
            raise ValueError(f"{name}.{key} has shape {tuple(tensor.shape)}: not one per channel")
        else:
            converted[key] = tensor.reshape(-1).clone()
    return converted


def _fixed_index(name: str, flag: Tensor, control: Tensor) -> Tensor:
    """The release keeps a flag, and the one-hot ratio in the place of the control parameters."""
    if not flag.any():
        return torch.full((1,), -1)
    one_hot = torch.zeros_like(control)
    one_hot[control.argmax()] = 1
    if not torch.allclose(control, one_hot, atol=1e-3):
        raise ValueError(f"{name} is set, but the ratio is not one-hot: {control.tolist()}")
    return control.argmax().reshape(1)
