"""Which norm layers a model or checkpoint has, and which convolutions are weight-standardized.

Weights mean little without that: a model with weight standardization (WS) has the parameters of one
without, name by name and shape by shape, and computes other features from them; so do GN and LN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..modeling.norm_registry import NORMS, norm_name
from ..norms import WSConvMixin

__all__ = ["describe_norms", "infer_norms", "match_names", "same_kind"]

# What infer_norms says of a layer that has an affine pair and nothing else.
_AFFINE = "GN, LN or IN"


def describe_norms(model: nn.Module) -> dict[str, Any]:
    """The norm layers and convolutions of a model, as plain dicts.

    Returns:
        ``norms``: kind ("GN", "SyncSN", …) of each norm layer, by module name; ``convs``: whether
        each convolution is weight-standardized, by module name.
    """
    norms: dict[str, str] = {}
    convs: dict[str, bool] = {}
    for name, module in model.named_modules():
        # BCN's first stage, `bn`, is a part of it and no norm of its own.
        if name.rpartition(".")[0] in norms:
            continue
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            convs[name] = isinstance(module, WSConvMixin)
        kind = norm_name(module)
        if kind is not None:
            norms[name] = kind
    return {"norms": norms, "convs": convs}


def infer_norms(state: Mapping[str, Any]) -> dict[str, str]:
    """Infer the kinds of the norm layers in a state dict from the names of its keys.

    Returns:
        kind by module name. A layer with nothing but an affine pair is "GN, LN or IN". Weight
        standardization cannot be inferred.
    """
    fields: dict[str, set[str]] = {}
    for key in state:
        owner, _, field = key.rpartition(".")
        fields.setdefault(owner, set()).add(field)
    norms: dict[str, str] = {}
    for owner, found in fields.items():
        parent, _, last = owner.rpartition(".")
        weight = state.get(f"{owner}.weight")
        if "mean_weight" in found:
            norms[owner] = "SN" if "running_mean" in found else "SN_IN_LN"
        elif "running_mean" in found:
            # A channel norm's affine pair around a batch norm named `bn`.
            bcn = last == "bn" and {"weight", "bias"} <= fields.get(parent, set())
            norms[parent if bcn else owner] = "BCN" if bcn else "BN"
        elif {"weight", "bias"} <= found and getattr(weight, "ndim", 0) == 1:
            norms.setdefault(owner, _AFFINE)
        elif not owner:
            norms.update(_caffe2_norms(found))
    return norms


def _caffe2_norms(keys: Iterable[str]) -> dict[str, str]:
    """Of Detectron's own names: res2_0_branch2a_bn_s, res2_0_branch2a_gn_s."""
    kinds = {"_bn_s": "BN", "_gn_s": "GN"}
    return {key[:-2]: kinds[key[-5:]] for key in keys if key[-5:] in kinds}


def match_names(theirs: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """Match module names that are equal, or where ours has an additional prefix.

    Args:
        theirs: names in the checkpoint.
        ours: names in the model.

    Returns:
        our name by theirs; names without a unique match are left out.
    """
    ours = list(ours)
    known = set(ours)
    matched: dict[str, str] = {}
    for name in theirs:
        if name in known:
            matched[name] = name
        elif name:
            found = [full for full in ours if full.endswith(f".{name}")]
            if len(found) == 1:
                matched[name] = found[0]
    return matched


def same_kind(theirs: str, ours: str) -> bool:
    """Whether two kinds share parameters and arithmetic: BN and FrozenBN, SN and SyncSN, …

    Args:
        theirs: from `describe_norms` or `infer_norms`.
        ours: from `describe_norms`.
    """
    if theirs == _AFFINE:
        return ours in ("GN", "LN", "LN_CHW", "IN")
    known = theirs in NORMS and ours in NORMS
    return theirs == ours or (known and NORMS[theirs].family == NORMS[ours].family)
