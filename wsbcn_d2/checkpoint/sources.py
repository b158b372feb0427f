"""Where published ResNet weights come from: told apart by their names, and those translated.

The neck and heads of a detector around them: `detectors`.

The names are facts of the files; nothing here is code of those projects.

================  =================================================================================
torchvision       ``layer1.0.conv1``, ``layer1.0.bn1`` with running statistics; timm has the same
timm              the same; ``resnet50_gn`` with an affine pair only
mmdet             ``gn1`` for GN, ``backbone.`` in front inside a detector
ws                joe-siyuan-qiao/pytorch-classification: ``bn1`` is a GroupNorm
bcn               joe-siyuan-qiao/Batch-Channel-Normalization: ``bn1.pbn``, in its README ``bn1.bn``
sn                Switchable-Normalization: ``sn1``, with ``mean_weight`` and ``var_weight``
ssn               Sparse_SwitchNorm: SN's, and ``mean_fixed``, ``var_fixed``, ``radius``
bit               timm's ``resnetv2_…_bit``: ``stages.0.blocks.0.conv1``, norms in front
sn_detection      SwitchNorm_Detection (Detectron.pytorch): ``Conv_Body.conv_body.res2.0.conv1``, or
                  Detectron's blobs ``res2_0_branch2a_w``
================  =================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .bit import BIT

__all__ = ["HEAD", "IMAGENET_MEAN", "IMAGENET_STD", "SOURCES", "Source", "recognize", "translate"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, of images in 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Source:
    """What all checkpoints of one origin have in common.

    Attributes:
        title: for people.
        norms: kinds that its networks have, as `describe_norms` names them.
        ws: whether the convolutions are standardized; None where only the single file knows.
        ws_eps_mode: as in `wsbcn_d2.norms.standardize_weight`.
        unbiased: whether SN's variances are (see `SwitchNorm2d`).
        stem_pool: ``"padded"``; ``"ceil"`` for a stem whose max pooling does not pad but rounds the
            size up; ``"zeros"`` for one that pads with zeros.
        pixel_mean, pixel_std: in RGB, where the single file does not say otherwise.
    """

    title: str
    norms: tuple[str, ...]
    ws: bool | None = False
    ws_eps_mode: str = "outside"
    unbiased: bool = False
    stem_pool: str = "padded"
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD


SOURCES = {
    "torchvision": Source("torchvision (or timm) with BN", ("BN",)),
    "timm": Source("timm", ("BN", "GN")),
    "mmdet": Source("mmdetection", ("BN", "GN"), ws=None),
    "ws": Source("the WS release (pytorch-classification)", ("GN",), ws=True),
    "bcn": Source("the BCN release", ("BatchBCN", "BCN"), ws=True, ws_eps_mode="inside"),
    "sn": Source("Switchable-Normalization", ("SN", "SN_IN_LN"), unbiased=True),
    "ssn": Source("Sparse_SwitchNorm", ("SSN",), unbiased=True, stem_pool="ceil"),
    "bit": Source(
        "BiT (timm's resnetv2)",
        ("GN",),
        ws=True,
        ws_eps_mode="inside",
        stem_pool="zeros",
        pixel_mean=(127.5, 127.5, 127.5),
        pixel_std=(127.5, 127.5, 127.5),
    ),
    "sn_detection": Source(
        "Detectron or Detectron.pytorch (SwitchNorm_Detection)",
        ("SN", "SN_IN_LN", "GN"),
        unbiased=True,
    ),
}

_NORM = r"(?:bn|gn|sn|norm)"
_BLOB_NORM = r"_(?:bn|gn|sn)"


def recognize(names: Iterable[str], metadata: Mapping[str, Any], file_name: str = "") -> str:
    """The source of a checkpoint.

    Args:
        names: of its tensors, from `unwrap`.
        metadata: other content of the file, from `unwrap`.
        file_name: its name, which tells GN + WS from GN where nothing else does.

    Returns:
        a key of `SOURCES`.

    Raises:
        ValueError: no source has such names (the message shows the first), or two have and only the
            user can know which.
    """
    names = list(names)

    def any_name(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    if any_name(r"^Conv_Body\.|^res\d_\d+_branch"):
        return "sn_detection"
    if any_name(r"^stages\.0\.blocks\.0\.norm1\.weight$"):
        return "bit"
    if any_name(r"^(backbone\.)?layer1\.0\.conv1\.weight$"):
        if any_name(r"\.mean_fixed$"):
            return "ssn"
        if any_name(r"\.mean_weight$"):
            return "sn"
        if any_name(r"\.p?bn\.running_mean$"):
            return "bcn"
        if any_name(r"^backbone\.") or any_name(r"^layer1\.0\.gn1\."):
            return "mmdet"
        if any_name(r"^layer1\.0\.bn1\.running_mean$"):
            return "torchvision"
        if any_name(r"^layer1\.0\.bn1\.weight$"):
            # best_acc: what that project's script writes beside the weights.
            if "best_acc" in metadata or re.search("gn-ws", file_name, re.IGNORECASE):
                return "ws"
            raise ValueError(
                "GroupNorm under the names of torchvision, as both the WS release and timm have: "
                "say which with --source ws (trained with weight standardization) or --source timm "
                "(without)"
            )
    first = "\n  ".join(names[:10])
    raise ValueError(
        f"no known source has such weights; known: {', '.join(SOURCES)}, in their ResNets and "
        f"ResNeXts with a 7x7 stem. The first of {len(names)} keys:\n  {first}"
    )


def translate(source: str, name: str) -> tuple[str | None, str]:
    """detectron2's name of a tensor.

    Args:
        source: a key of `SOURCES`.
        name: from `unwrap`.

    Returns:
        ``(name, "")`` such as ``("res2.0.conv1.norm.weight", "")``; ``(None, reason)`` for a tensor
        that the backbone does not take; ``(None, "")`` for one that nobody expected.
    """
    for pattern, reason in (*_IGNORED.get(source, ()), *_IGNORED_EVERYWHERE):
        if re.match(pattern, name):
            return None, reason
    if source == "mmdet":
        name = name.removeprefix("backbone.")
    rules = BIT if source == "bit" else _TORCHVISION
    if source == "sn_detection":
        name = re.sub(r"^Conv_Body\.(conv_body\.)?|^Box_Head\.(?=res5\.)", "", name)
        rules = _DETECTRON_PYTORCH if "." in name else _BLOBS
    for pattern, template in rules:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return _expand(template, match), ""
    return None, ""


def _expand(template: str, match: re.Match[str]) -> str:
    groups = match.groupdict()
    if "layer" in groups:  # torchvision counts stages from 1, detectron2 from 2
        groups["stage"] = str(int(groups["layer"]) + 1)
    if "index" in groups:  # from 0
        groups["stage"] = str(int(groups["index"]) + 2)
    if "letter" in groups:
        groups["k"] = str("abc".index(groups["letter"]) + 1)
    if "suffix" in groups:
        groups["field"] = _BLOB_FIELDS[groups["suffix"]]
    return template.format(**groups)


_BLOCK = r"(?P<block>\d+)\."
_TORCHVISION = (
    (r"conv1\.weight", "stem.conv1.weight"),
    (_NORM + r"1\.(?P<field>[\w.]+)", "stem.conv1.norm.{field}"),
    (
        r"layer(?P<layer>[1-4])\." + _BLOCK + r"conv(?P<k>[123])\.weight",
        "res{stage}.{block}.conv{k}.weight",
    ),
    (
        r"layer(?P<layer>[1-4])\." + _BLOCK + _NORM + r"(?P<k>[123])\.(?P<field>[\w.]+)",
        "res{stage}.{block}.conv{k}.norm.{field}",
    ),
    (
        r"layer(?P<layer>[1-4])\." + _BLOCK + r"downsample\.0\.weight",
        "res{stage}.{block}.shortcut.weight",
    ),
    (
        r"layer(?P<layer>[1-4])\." + _BLOCK + r"downsample\.1\.(?P<field>[\w.]+)",
        "res{stage}.{block}.shortcut.norm.{field}",
    ),
)
_DETECTRON_PYTORCH = (
    (r"res1\.conv1\.weight", "stem.conv1.weight"),
    (r"res1\." + _NORM + r"1\.(?P<field>\w+)", "stem.conv1.norm.{field}"),
    (
        r"res(?P<stage>[2-5])\." + _BLOCK + r"conv(?P<k>[123])\.weight",
        "res{stage}.{block}.conv{k}.weight",
    ),
    (
        r"res(?P<stage>[2-5])\." + _BLOCK + _NORM + r"(?P<k>[123])\.(?P<field>\w+)",
        "res{stage}.{block}.conv{k}.norm.{field}",
    ),
    (
        r"res(?P<stage>[2-5])\." + _BLOCK + r"downsample\.0\.weight",
        "res{stage}.{block}.shortcut.weight",
    ),
    (
        r"res(?P<stage>[2-5])\." + _BLOCK + r"downsample\.1\.(?P<field>\w+)",
        "res{stage}.{block}.shortcut.norm.{field}",
    ),
)
_BLOB_FIELDS = {
    "s": "weight",
    "b": "bias",
    "mean_weight": "mean_weight",
    "var_weight": "var_weight",
    "rm": "running_mean",
    "riv": "running_var",  # the variance itself, whatever its name says
}
_BLOB_SUFFIX = r"_(?P<suffix>s|b|mean_weight|var_weight|rm|riv)"
_BLOB_BLOCK = r"res(?P<stage>[2-5])_(?P<block>\d+)_branch"
_BLOBS = (
    (r"conv1_w", "stem.conv1.weight"),
    (r"(?:res_)?conv1" + _BLOB_NORM + _BLOB_SUFFIX, "stem.conv1.norm.{field}"),
    (_BLOB_BLOCK + r"1_w", "res{stage}.{block}.shortcut.weight"),
    (_BLOB_BLOCK + "1" + _BLOB_NORM + _BLOB_SUFFIX, "res{stage}.{block}.shortcut.norm.{field}"),
    (_BLOB_BLOCK + r"2(?P<letter>[abc])_w", "res{stage}.{block}.conv{k}.weight"),
    (
        _BLOB_BLOCK + r"2(?P<letter>[abc])" + _BLOB_NORM + _BLOB_SUFFIX,
        "res{stage}.{block}.conv{k}.norm.{field}",
    ),
)

_CLASSIFIER = "the classifier of ImageNet"
HEAD = "a detector's neck or head: only the backbone is converted"
_IGNORED_EVERYWHERE = (
    (r"(backbone\.)?fc\.(weight|bias)$", _CLASSIFIER),
    (r".*\.num_batches_tracked$", "a count of batches that loading does without"),
)
_IGNORED = {
    "bit": (
        (r"norm\.(weight|bias)$", "the norm before the classifier"),
        (r"head\.fc\.(weight|bias)$", _CLASSIFIER),
    ),
    "bcn": ((r".*\.estbn_moving_speed$", "the estimates' rate: a norm's `momentum` here"),),
    "mmdet": (
        (r"(neck|rpn_head|roi_head|bbox_head|mask_head|keypoint_head|rpn)\.", HEAD),
        (r"(head|auxiliary_head|decode_head)\.", "a classifier or segmentation head"),
        (r"data_preprocessor\.", "the input's mean and deviation"),
    ),
    "sn_detection": (
        (r".*_momentum$", "the optimizer's"),
        (r"Conv_Body\.(conv_body\.)?classifier\.|pred_[wb]$|fc1000_[wb]$", _CLASSIFIER),
        (r"Conv_Body\.(conv_top|topdown_lateral_modules|posthoc_modules)\.", HEAD),
        (r"Mask_Head\.res5\.", "a copy of the box head's res5"),
        (r"(RPN|Box_Outs|Mask_Head|Mask_Outs|Keypoint_Head|Keypoint_Outs)\.", HEAD),
        (r"Box_Head\.(?!res5\.)", HEAD),
        (r"(fpn_|conv_rpn|rpn_|head_conv|fc[67]_|cls_score|bbox_pred)", HEAD),
        (r"(_\[?mask\]?_fcn|conv5_mask|mask_fcn)", HEAD),
    ),
}
