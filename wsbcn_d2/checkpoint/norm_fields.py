"""The tensors of a norm layer, from the published names and shapes to the ones loaded here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..norms.sparsemax import circumradius

__all__ = ["convert_fields", "norm_kind", "split_norms"]

_AFFINE = {"weight", "bias"}
_RUNNING = {"running_mean", "running_var"}
_CONTROLS = {"mean_weight", "var_weight"}
_FIELDS = {
    "GN": _AFFINE,
    "BN": _AFFINE | _RUNNING,
    "SN": _AFFINE | _CONTROLS | _RUNNING,
    "SN_IN_LN": _AFFINE | _CONTROLS,
    "SSN": _AFFINE | _CONTROLS | _RUNNING | {"mean_fixed", "var_fixed", "radius"},
    "BatchBCN": _AFFINE | {f"bn.{key}" for key in _AFFINE | _RUNNING},
}
# The statistics that the control parameters weigh.
_NUM_STATISTICS = {"SN": 3, "SN_IN_LN": 2, "SSN": 3}


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

    Raises:
        ValueError: none has.
    """
    for kind, wanted in _FIELDS.items():
        if set(fields) == wanted:
            return kind
    kinds = "; ".join(f"{', '.join(sorted(wanted))} ({kind})" for kind, wanted in _FIELDS.items())
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
            if tensor.shape[-1] != _NUM_STATISTICS[kind]:
                raise ValueError(
                    f"{name}.{key} has shape {tuple(tensor.shape)}; {kind} has "
                    f"{_NUM_STATISTICS[kind]} control parameters"
                )
            converted[key] = tensor.clone()
        elif key in ("mean_fixed", "var_fixed"):
            control = fields[key.replace("fixed", "weight")]
            converted[key] = _fixed_index(f"{name}.{key}", tensor, control)
        elif key == "radius":
            # The release goes on to 1; beyond the circumradius nothing changes.
            limit = circumradius(_NUM_STATISTICS[kind])
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
