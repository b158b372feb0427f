"""Neck and heads of published two-stage detectors, as detectron2's GeneralizedRCNN has them.

================  ===========================================================================
mmdet             ``neck.lateral_convs.0.conv``, ``rpn_head.rpn_cls``, ``roi_head.bbox_head.…``
sn_detection      ``Conv_Body.conv_top.0``, ``RPN.FPN_RPN_cls_score``, ``Box_Head.convs.0``, …, or
                  Detectron's blobs ``fpn_inner_res5_2_sum_w``, ``rpn_cls_logits_fpn2_w``, …
================  ===========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = [
    "arrange_heads",
    "has_background_first",
    "is_detector",
    "missing_heads",
    "move_into_detector",
    "translate_heads",
]

_RPN = "proposal_generator.rpn_head"
_BOX, _MASK = "roi_heads.box_head", "roi_heads.mask_head"
_CLASSES, _DELTAS = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"
_MASKS = f"{_MASK}.predictor"

# (their module, ours, number of the first, step): "{}" is the first number plus step times theirs.
_Table = tuple[tuple[str, str, int, int], ...]
_MMDET: _Table = (
    (r"neck\.lateral_convs\.(\d+)", "backbone.fpn_lateral{}", 2, 1),
    (r"neck\.fpn_convs\.(\d+)", "backbone.fpn_output{}", 2, 1),
    (r"rpn_head\.rpn_conv", f"{_RPN}.conv", 0, 0),
    (r"rpn_head\.rpn_cls", f"{_RPN}.objectness_logits", 0, 0),
    (r"rpn_head\.rpn_reg", f"{_RPN}.anchor_deltas", 0, 0),
    (r"(?:roi_head\.)?bbox_head\.shared_convs\.(\d+)", _BOX + ".conv{}", 1, 1),
    (r"(?:roi_head\.)?bbox_head\.shared_fcs\.(\d+)", _BOX + ".fc{}", 1, 1),
    (r"(?:roi_head\.)?bbox_head\.fc_cls", _CLASSES, 0, 0),
    (r"(?:roi_head\.)?bbox_head\.fc_reg", _DELTAS, 0, 0),
    (r"(?:roi_head\.)?mask_head\.convs\.(\d+)", _MASK + ".mask_fcn{}", 1, 1),
    (r"(?:roi_head\.)?mask_head\.upsample", f"{_MASK}.deconv", 0, 0),
    (r"(?:roi_head\.)?mask_head\.conv_logits", _MASKS, 0, 0),
)
_DETECTRON_PYTORCH: _Table = (
    (r"Conv_Body\.conv_top", "backbone.fpn_lateral5", 0, 0),
    (r"Conv_Body\.topdown_lateral_modules\.(\d+)\.conv_lateral", "backbone.fpn_lateral{}", 4, -1),
    (r"Conv_Body\.posthoc_modules\.(\d+)", "backbone.fpn_output{}", 5, -1),
    (r"RPN\.(?:FPN_)?RPN_conv", f"{_RPN}.conv", 0, 0),
    (r"RPN\.(?:FPN_)?RPN_cls_score", f"{_RPN}.objectness_logits", 0, 0),
    (r"RPN\.(?:FPN_)?RPN_bbox_pred", f"{_RPN}.anchor_deltas", 0, 0),
    (r"Box_Head\.fc(\d)?", _BOX + ".fc{}", 0, 1),
    (r"Box_Outs\.cls_score", _CLASSES, 0, 0),
    (r"Box_Outs\.bbox_pred", _DELTAS, 0, 0),
    (r"Mask_Head\.upconv5?", f"{_MASK}.deconv", 0, 0),
    (r"Mask_Outs\.classify", _MASKS, 0, 0),
)
# Convolutions, norms and ReLUs in one nn.Sequential.
_SEQUENTIAL = (
    (r"Box_Head\.convs\.(\d+)\.(\w+)", _BOX + ".conv{}"),
    (r"Mask_Head\.conv_fcn\.(\d+)\.(\w+)", _MASK + ".mask_fcn{}"),
)
_BLOBS: _Table = (
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", "backbone.fpn_lateral{}", 0, 1),
    (r"fpn_res(\d)_\d+_sum", "backbone.fpn_output{}", 0, 1),
    (r"conv_rpn(?:_fpn\d)?", f"{_RPN}.conv", 0, 0),
    (r"rpn_cls_logits(?:_fpn\d)?", f"{_RPN}.objectness_logits", 0, 0),
    (r"rpn_bbox_pred(?:_fpn\d)?", f"{_RPN}.anchor_deltas", 0, 0),
    (r"head_conv(\d)", _BOX + ".conv{}", 0, 1),
    (r"fc([67])", _BOX + ".fc{}", -5, 1),
    (r"cls_score", _CLASSES, 0, 0),
    (r"bbox_pred", _DELTAS, 0, 0),
    (r"_\[?mask\]?_fcn(\d)", _MASK + ".mask_fcn{}", 0, 1),
    (r"conv5_mask", f"{_MASK}.deconv", 0, 0),
    (r"mask_fcn_logits", _MASKS, 0, 0),
)
# What stands between a module and its tensor: a convolution and a norm, by name or in a Sequential.
_PART = r"(?:\.(?:conv|0|(?P<norm>gn|bn|sn|1)))?\.(?P<field>\w+)"
_BLOB_PART = r"(?P<norm>_(?:gn|bn|sn))?_(?P<field>w|s|b|mean_weight|var_weight|rm|riv)"
_BLOB_FIELDS = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean",
                "riv": "running_var"}  # fmt: skip
_TABLES = {
    "mmdet": [(_MMDET, _PART)],
    "sn_detection": [(_DETECTRON_PYTORCH, _PART), (_BLOBS, _BLOB_PART)],
}


def translate_heads(source: str, names: Iterable[str]) -> dict[str, str]:
    """detectron2's names of a detector's neck and heads; those of other tensors are left out.

    Args:
        source: a key of `SOURCES`.
        names: of the checkpoint's tensors, from `unwrap`.

    Returns:
        for each name the new one, such as ``roi_heads.box_head.conv1.norm.weight``.
    """
    names = list(names)
    found: dict[str, str] = {}
    for table, part in _TABLES.get(source, ()):
        for pattern, template, start, step in table:
            for name in names:
                match = re.fullmatch(pattern + part, name)
                if match is None:
                    continue
                number = 1 if match.re.groups == 2 or match[1] is None else int(match[1])
                owner = template.format(start + step * number) + (".norm" * bool(match["norm"]))
                found[name] = f"{owner}.{_BLOB_FIELDS.get(match['field'], match['field'])}"
    if source == "sn_detection":
        found |= _translate_sequential(names)
    return found


def _translate_sequential(names: list[str]) -> dict[str, str]:
    found = {}
    for pattern, template in _SEQUENTIAL:
        matches = [match for name in names if (match := re.fullmatch(pattern, name))]
        # With norms they are conv, norm, ReLU; without, conv, ReLU.
        period = 3 if any(match[1] == "1" for match in matches) else 2
        for match in matches:
            number, part = divmod(int(match[1]), period)
            owner = template.format(number + 1) + (".norm" if part == 1 else "")
            found[match[0]] = f"{owner}.{match[2]}"
    return found


def is_detector(names: Iterable[str]) -> bool:
    """Whether the translated names have what makes a two-stage detector: proposals and classes."""
    return {f"{_RPN}.objectness_logits.weight", f"{_CLASSES}.weight"} <= set(names)


def missing_heads(tensors: Mapping[str, Tensor]) -> list[str]:
    """Weights without which `arrange_heads` or a model would not do."""
    wanted = [f"{_RPN}.{name}" for name in ("conv", "objectness_logits", "anchor_deltas")]
    wanted += [_CLASSES, _DELTAS]
    if any(name.startswith("backbone.fpn_") for name in tensors):
        stages = sorted({name[3] for name in tensors if name.startswith("res")})
        wanted += [f"backbone.fpn_{kind}{n}" for kind in ("lateral", "output") for n in stages]
        wanted.append(f"{_BOX}.fc1")
    if any(name.startswith(_MASK) for name in tensors):
        wanted += [f"{_MASK}.deconv", _MASKS]
    return [f"{name}.weight" for name in wanted if f"{name}.weight" not in tensors]


def has_background_first(tensors: Mapping[str, Tensor]) -> bool:
    """Whether class 0 is the background: then it has box deltas too, which nobody uses.

    So it is in Detectron, in what came of it, and in mmdetection before 2.0.
    """
    classes, deltas = len(tensors[f"{_CLASSES}.bias"]), len(tensors[f"{_DELTAS}.bias"])
    return deltas == 4 * classes


def arrange_heads(tensors: dict[str, Tensor]) -> list[str]:
    """Put the channels of the predictors into detectron2's order, in place.

    * The background is the last class, and has no deltas and no mask.
    * An objectness of two channels an anchor, for a softmax, becomes one for a sigmoid: their
      difference.
    * Anchors of several sizes at a level are ordered by size, then by ratio; Detectron has the
      ratio first.

    Args:
        tensors: under detectron2's names, complete as of `missing_heads`.

    Returns:
        a line for each thing that was done.

    Raises:
        ValueError: deltas that are neither a class's each nor the same for all classes, or anchors
            of several sizes that are not of three ratios.
    """
    notes = []
    biased = ("weight", "bias")
    if has_background_first(tensors):
        notes.append("the background was class 0; it is the last class now")
        for field in biased:
            scores = tensors[f"{_CLASSES}.{field}"]
            tensors[f"{_CLASSES}.{field}"] = torch.cat([scores[1:], scores[:1]])
            tensors[f"{_DELTAS}.{field}"] = tensors[f"{_DELTAS}.{field}"][4:].clone()
            masks = tensors.get(f"{_MASKS}.{field}")
            if masks is not None and len(masks) > 1:
                tensors[f"{_MASKS}.{field}"] = masks[1:].clone()
    classes, deltas = len(tensors[f"{_CLASSES}.bias"]) - 1, len(tensors[f"{_DELTAS}.bias"])
    if deltas not in (4, 4 * classes):
        raise ValueError(f"{_DELTAS} has {deltas} numbers for {classes} classes: not 4 each")
    anchors = len(tensors[f"{_RPN}.anchor_deltas.bias"]) // 4
    if len(tensors[f"{_RPN}.objectness_logits.bias"]) == 2 * anchors:
        notes.append("the objectness was a softmax of two; it is a sigmoid of their difference now")
        for field in biased:
            both = tensors[f"{_RPN}.objectness_logits.{field}"]
            tensors[f"{_RPN}.objectness_logits.{field}"] = both[anchors:] - both[:anchors]
    if anchors > 3:
        if anchors % 3:
            raise ValueError(f"{_RPN} has {anchors} anchors, not a multiple of three ratios")
        notes.append("the anchors were ordered by ratio first; they are by size first now")
        for key, width in (("objectness_logits", 1), ("anchor_deltas", 4)):
            for field in biased:
                tensor = tensors[f"{_RPN}.{key}.{field}"]
                ordered = tensor.view(3, anchors // 3, width, *tensor.shape[1:]).transpose(0, 1)
                tensors[f"{_RPN}.{key}.{field}"] = ordered.reshape(tensor.shape).contiguous()
    return notes


def move_into_detector(name: str, fpn: bool) -> str:
    """The name in a ``GeneralizedRCNN`` of what a backbone calls ``stem.…`` or ``res2.…``.

    Args:
        name: of a tensor or module; one of a neck or head is returned as it is.
        fpn: whether the model has FPN. Otherwise it is a C4 model, whose heads have ``res5``.
    """
    if not re.match(r"(stem|res\d)\.", name):
        return name
    if fpn:
        return f"backbone.bottom_up.{name}"
    return f"roi_heads.{name}" if name.startswith("res5.") else f"backbone.{name}"
