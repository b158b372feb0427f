"""How the model that a checkpoint was saved from differs from the one that loads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils import comm
from torch import nn

from ..modeling.norm_registry import NORMS
from ..norms import WSConvMixin
from ..norms.switchable_norm import SwitchNorm
from .norm_kinds import describe_norms, infer_norms, match_names, same_kind

__all__ = [
    "compare_parameters",
    "compare_with_checkpoint",
    "describe_minibatch",
    "describe_model",
    "shown",
]

# How many keys a message shows.
_SHOWN = 3
# What weights depend on besides norms, and where it is set.
_SETTINGS = {
    "ws_eps_mode": "ws_eps_mode=… of `standardized`, MODEL.WSBCN.EPS_MODE",
    "unbiased": "unbiased=… of SwitchNorm2d: functools.partial(SwitchNorm2d, unbiased=True)",
    "stride_in_1x1": "stride_in_1x1 of the bottlenecks, MODEL.RESNETS.STRIDE_IN_1X1",
    "stem_pool": "'ceil' is wsbcn_d2.modeling.CeilPoolStem, 'padded' detectron2's BasicStem",
    "input_format": "model.input_format, INPUT.FORMAT",
    "pixel_mean": "model.pixel_mean, MODEL.PIXEL_MEAN",
    "pixel_std": "model.pixel_std, MODEL.PIXEL_STD",
    "box_weights": "weights of the box predictor's Box2BoxTransform",
    "roi_align": "pooler_type of the poolers, MODEL.ROI_BOX_HEAD.POOLER_TYPE",
    "roi_sampling": "sampling_ratio of the poolers, MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",
    "boxes": "'inclusive' boxes have the width x2 - x1 + 1: docs/weights.md, Detectors",
}
# A difference of pixel values that no rounding makes.
_PIXEL_TOLERANCE = 0.5


def describe_model(model: nn.Module) -> dict[str, Any]:
    """The record that `WSBCNCheckpointer` saves beside the weights, as plain data.

    Returns:
        `describe_norms`, and those of ``ws_eps_mode``, ``unbiased``, ``stride_in_1x1``,
        ``stem_pool``, ``input_format``, ``pixel_mean``, ``pixel_std``, ``box_weights``,
        ``roi_align``, ``roi_sampling`` and ``boxes`` that the model has one value of.
    """
    settings = {key: values[0] for key, values in _settings(model).items() if len(values) == 1}
    return {**describe_norms(model), **settings}


def _settings(model: nn.Module) -> dict[str, list[Any]]:
    """The values of each setting in a model; usually one, and none where there is no such part."""
    found: dict[str, set[Any]] = {key: set() for key in _SETTINGS}
    for module in model.modules():
        if isinstance(module, WSConvMixin):
            found["ws_eps_mode"].add(module.eps_mode)
        if isinstance(module, SwitchNorm):
            found["unbiased"].add(module.unbiased)
        if isinstance(module, BottleneckBlock) and module.stride > 1:
            found["stride_in_1x1"].add(module.conv1.stride != (1, 1))
        if isinstance(module, ROIPooler):
            pooler = module.level_poolers[0]
            if isinstance(pooler, ROIAlign):
                found["roi_align"].add("ROIAlignV2" if pooler.aligned else "ROIAlign")
                found["roi_sampling"].add(pooler.sampling_ratio)
        if isinstance(module, FastRCNNOutputLayers):
            found["box_weights"].add(tuple(module.box2box_transform.weights))
            found["boxes"].add(getattr(module.box2box_transform, "boxes", "exclusive"))
        if isinstance(module, BasicStem):
            found["stem_pool"].add(getattr(module, "stem_pool", "padded"))
    if isinstance(getattr(model, "input_format", None), str):
        found["input_format"].add(model.input_format)
    for key in ("pixel_mean", "pixel_std"):
        pixel = getattr(model, key, None)
        if isinstance(pixel, torch.Tensor) and not pixel.is_meta:
            numbers = pixel.detach().flatten().tolist()
            found[key].add(tuple(round(number, 3) for number in numbers))
    return {key: sorted(values) for key, values in found.items()}


def compare_with_checkpoint(checkpoint: Mapping[str, Any], model: nn.Module) -> list[str]:
    """How the model that the weights were trained in differs from the model that loads them.

    Layers are matched by name, a backbone's also inside a detector. BN, SyncBN and FrozenBN count
    as equal, and so do SN and SyncSN, and the three kinds of BCN. A checkpoint without a record
    says by its key names which norms it has, and nothing else.

    Args:
        checkpoint: the state dict under ``"model"``, `describe_model` under ``"norms"``, and what
            `convert_weights` adds of the pretraining under ``"pretraining"``.
        model: the model that is to load the weights.

    Returns:
        one line for each difference, naming both sides; none where nothing differs.
    """
    norms, pretraining = checkpoint.get("norms"), checkpoint.get("pretraining")
    record = {**(pretraining or {}), **(norms or {})}
    ours = describe_norms(model)
    kinds = record["norms"] if norms else infer_norms(checkpoint["model"])
    lines = _compare_kinds(kinds, ours["norms"])
    lines += _compare_ws(checkpoint["model"], record.get("convs"), ours["convs"])
    return lines + list(_compare_settings(record, model))


def _compare_kinds(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    matched = match_names(theirs, ours)
    differing: dict[tuple[str, str], list[str]] = {}
    for their_name, name in matched.items():
        pair = (theirs[their_name], ours[name])
        if not same_kind(*pair):
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
    if our_kinds and any(not any(same_kind(a, b) for b in our_kinds) for a in their_kinds):
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
    differing = [name for a, b, name in pairs if a != b]
    if not differing:
        return []
    return [
        f"weight standardization: {sum(a for a, _, _ in pairs)} of {len(pairs)} convolutions in "
        f"the checkpoint, {sum(b for _, b, _ in pairs)} in the model; they differ in "
        f"{len(differing)}, such as {differing[0]}"
    ]


def _compare_settings(record: Mapping[str, Any], model: nn.Module) -> Iterator[str]:
    ours = _settings(model)
    for key, where in _SETTINGS.items():
        if (
            record.get(key) is None
            or not ours[key]
            or (key == "ws_eps_mode" and not record.get("ws", 1))
        ):
            continue
        if key.startswith("pixel"):
            # Their order differs with that of the colours, which has its own line.
            if record.get("input_format") not in (None, *ours["input_format"]):
                continue
            (pixel,) = ours[key]
            equal = len(pixel) != len(record[key]) or all(
                abs(a - b) <= _PIXEL_TOLERANCE for a, b in zip(pixel, record[key], strict=True)
            )
        else:
            equal = record[key] in ours[key]
        if not equal:
            now = " and ".join(map(repr, ours[key]))
            yield f"{key}: {record[key]!r} in the checkpoint, {now} in the model ({where})"


def describe_minibatch(model: nn.Module, images_per_process: int) -> int:
    """Images that the batch statistics of a model are taken over in its training.

    Args:
        model: one with a synchronized norm pools over all processes.
        images_per_process: images that a process sees at a time.
    """
    kinds = describe_norms(model)["norms"].values()
    synchronized = any(kind in NORMS and NORMS[kind].statistics == "ranks" for kind in kinds)
    return images_per_process * (comm.get_world_size() if synchronized else 1)


def compare_parameters(state: Mapping[str, Any], model: nn.Module) -> list[str]:
    """The tensors that only one side has, or that differ in shape; for a resume.

    Args:
        state: state dict of the checkpoint.
        model: the model that is to load it.

    Returns:
        one line for each kind of difference.
    """
    ours = model.state_dict()
    lines = [
        f"{len(keys)} tensor(s) {where}: {shown(keys)}"
        for keys, where in (
            ([key for key in state if key not in ours], "only in the checkpoint"),
            ([key for key in ours if key not in state], "only in the model"),
        )
        if keys
    ]
    other = [key for key in ours if key in state and state[key].shape != ours[key].shape]
    if other:
        lines.append(
            f"{len(other)} tensor(s) of another shape (number of classes, width), such as "
            f"{other[0]}: {tuple(state[other[0]].shape)} in the checkpoint, "
            f"{tuple(ours[other[0]].shape)} in the model"
        )
    return lines


def shown(keys: Iterable[str]) -> str:
    """The first few keys, for a message."""
    keys = list(keys)
    more = ", …" if len(keys) > _SHOWN else ""
    return (", ".join(map(str, keys[:_SHOWN])) or "none") + more
