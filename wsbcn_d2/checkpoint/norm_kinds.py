"""Which norm layers a model or checkpoint has, and which convolutions are weight-standardized.

Weights mean little without that: a model with weight standardization (WS) has the parameters of one
without, name by name and shape by shape, and computes other features from them; so do GN and LN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["compare_norms", "describe_norms", "infer_norms", "match_names"]

# By the start of a class name, the more special ones first.
_KINDS = (
    ("SparseSwitchNorm", "SSN"),
    ("SyncSwitchNorm", "SyncSN"),
    ("SwitchNorm", "SN"),
    ("BatchChannelNorm", "BCN"),
    ("BatchRenorm", "BRN"),
    ("NaiveSyncBatchNorm", "SyncBN"),
    ("SyncBatchNorm", "SyncBN"),
    ("FrozenBatchNorm", "FrozenBN"),
    ("BatchNorm", "BN"),
    ("GroupNorm", "GN"),
    ("LayerNorm", "LN"),
    ("InstanceNorm", "IN"),
)
_BCN = {"estimate": "BCN", "batch": "BatchBCN", "sync": "SyncBCN"}
# What infer_norms says of a layer that has an affine pair and nothing else.
_AFFINE = "GN, LN or IN"
# Kinds that share their parameters and, in evaluation, their arithmetic.
_FAMILIES = (
    {"BN", "SyncBN", "FrozenBN", "BRN"},
    {"SN", "SyncSN"},
    {"BCN", "BatchBCN", "SyncBCN"},
    {"GN", _AFFINE},
    {"LN", _AFFINE},
    {"IN", _AFFINE},
)


def describe_norms(model: nn.Module) -> dict[str, Any]:
    """What `WSBCNCheckpointer` saves beside the weights, as plain dicts.

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
        names = [cls.__name__.lstrip("_") for cls in type(module).__mro__]
        if any(cls in ("Conv1d", "Conv2d", "Conv3d") for cls in names):
            convs[name] = any(cls.startswith("WSConv") for cls in names)
        kind = _kind(module, names)
        if kind is not None:
            norms[name] = kind
    return {"norms": norms, "convs": convs}


def _kind(module: nn.Module, class_names: list[str]) -> str | None:
    # The most special class decides: SN derives from InstanceNorm, BCN from GroupNorm.
    for class_name in class_names:
        for start, kind in _KINDS:
            if not class_name.startswith(start):
                continue
            statistics: Any = getattr(module, "statistics", None)
            if kind == "BCN":
                return _BCN.get(statistics, kind)
            if kind == "SN" and statistics is not None and "bn" not in statistics:
                return "SN_IN_LN"
            return kind
    return None


def infer_norms(state: Mapping[str, Any]) -> dict[str, str]:
    """Kinds of the norm layers in a state dict that says nothing of them, from its key names.

    Returns:
        kind by module name. A layer with an affine pair only is "GN, LN or IN". Whether
        convolutions were standardized cannot be seen.
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


def compare_norms(
    state: Mapping[str, Any], recorded: Mapping[str, Any] | None, model: nn.Module
) -> list[str]:
    """How the checkpoint's normalization differs from the model's.

    Layers are matched by name, a backbone's also inside a detector. BN, SyncBN and FrozenBN count
    as equal, and so do SN and SyncSN, and the three of BCN.

    Args:
        state: the checkpoint's state dict.
        recorded: what `describe_norms` said when it was saved; None if nobody did.
        model: the model that it is to be loaded into.

    Returns:
        one line for each difference, naming both sides; none where nothing differs.
    """
    ours = describe_norms(model)
    theirs = dict(recorded["norms"]) if recorded else infer_norms(state)
    convs = None if recorded is None else recorded["convs"]
    return _compare_kinds(theirs, ours["norms"]) + _compare_ws(state, convs, ours["convs"])


def _compare_kinds(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    matched = match_names(theirs, ours)
    differing: dict[tuple[str, str], list[str]] = {}
    for their_name, name in matched.items():
        pair = (theirs[their_name], ours[name])
        if not _same(*pair):
            differing.setdefault(pair, []).append(name)
    lines = [
        f"norm layers: checkpoint has {their_kind}, model has {our_kind}: {len(names)} layer(s), "
        f"such as {names[0]}"
        for (their_kind, our_kind), names in differing.items()
    ]
    if matched:
        return lines
    # Other names altogether, to be translated by detectron2: compare what there is.
    their_kinds, our_kinds = sorted(set(theirs.values())), sorted(set(ours.values()))
    if our_kinds and any(not any(_same(a, b) for b in our_kinds) for a in their_kinds):
        lines.append(
            f"norm layers: checkpoint has {', '.join(their_kinds)}, "
            f"model has {', '.join(our_kinds)}"
        )
    return lines


def _compare_ws(
    state: Mapping[str, Any], theirs: Mapping[str, bool] | None, ours: Mapping[str, bool]
) -> list[str]:
    if theirs is None:
        weights = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
        matched = set(match_names(weights, ours).values()) or set(ours if state else ())
        names = [name for name in ours if ours[name] and name in matched]
        if not names:
            return []
        return [
            "weight standardization: checkpoint does not say (probably none), model standardizes "
            f"{len(names)} of {len(matched)} convolutions, such as {names[0]}"
        ]
    pairs = [(theirs[a], ours[b], b) for a, b in match_names(theirs, ours).items()]
    lines = []
    for in_ours, text in ((True, "not in the model's"), (False, "not in the checkpoint's")):
        names = [name for a, b, name in pairs if a != b and a == in_ours]
        if names:
            side = "checkpoint" if in_ours else "model"
            lines.append(
                f"weight standardization: {len(names)} convolution(s) standardized in the {side}, "
                f"{text}, such as {names[0]} (checkpoint: {sum(a for a, _, _ in pairs)} of "
                f"{len(pairs)}; model: {sum(b for _, b, _ in pairs)} of {len(pairs)})"
            )
    return lines


def match_names(theirs: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """Their name → our name, where equal or where ours only has a prefix more."""
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


def _same(theirs: str, ours: str) -> bool:
    return theirs == ours or any({theirs, ours} <= family for family in _FAMILIES)
