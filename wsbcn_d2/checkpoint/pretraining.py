"""How published weights were trained, as far as it matters for loading them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .detectors import has_background_first
from .sources import IMAGENET_MEAN, IMAGENET_STD, SOURCES

__all__ = ["Pretraining", "describe_pretraining"]

_OVERRIDABLE = ("ws", "minibatch", "stride_in_1x1", "input_format", "pixel_mean", "pixel_std")


@dataclass
class Pretraining:
    """What a converted file says of its weights.

    Attributes:
        source: a key of `wsbcn_d2.checkpoint.sources.SOURCES`.
        file: name of the file that was converted.
        norm: kind, as `describe_norms` names it.
        ws, ws_eps_mode: whether the convolutions were standardized, and which way.
        unbiased: whether SN's variances were, as in the authors' code.
        minibatch: images that batch statistics were taken over (a GPU's); None: not known.
        blocks: residual blocks in each stage, from res2 on.
        bottleneck: whether they are bottlenecks, or basic blocks.
        groups, width_per_group: 32 and 4 for ResNeXt 32x4d.
        stride_in_1x1: where a bottleneck has its stride: the first 1x1, or the 3x3 convolution.
        stem_pool: ``"padded"``, ``"ceil"`` or ``"zeros"``; see `Source`.
        input_format, pixel_mean, pixel_std: ``"RGB"`` or ``"BGR"`` in 0..255, in that order.
        box_weights: of a detector, by which its box head's deltas are divided; the inverse of
            mmdetection's ``target_stds``.
        roi_align: of a detector, ``"ROIAlignV2"`` (half a pixel is subtracted) or ``"ROIAlign"``.
        roi_sampling: of a detector, points that ROIAlign takes a bin and axis; 0: as many as there
            are pixels.
        boxes: of a detector, ``"inclusive"`` where the last pixel is a part of a box, so that its
            width is x2 - x1 + 1, and anchors are rounded, as in Detectron; or ``"exclusive"``.
    """

    source: str
    file: str = ""
    norm: str = ""
    ws: bool = False
    ws_eps_mode: str = "outside"
    unbiased: bool = False
    minibatch: int | None = None
    blocks: tuple[int, ...] = ()
    bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = False
    stem_pool: str = "padded"
    input_format: str = "RGB"
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD
    box_weights: tuple[float, ...] | None = None
    roi_align: str | None = None
    roi_sampling: int | None = None
    boxes: str | None = None

    def summary(self) -> str:
        """A line for each thing."""
        kind = "bottleneck" if self.bottleneck else "basic"
        width = f", {self.groups}x{self.width_per_group}d" if self.groups > 1 else ""
        norm = f"{self.norm} (unbiased variances)" if self.unbiased else self.norm
        batch = "no batch statistics" if self.norm in ("GN", "SN_IN_LN") else "not known"
        detector = (
            [
                f"box weights:  {list(self.box_weights)}, coordinates {self.boxes}",
                f"pooling:      {self.roi_align}, sampling ratio {self.roi_sampling}",
            ]
            if self.box_weights
            else []
        )
        return "\n".join(
            [
                f"source:       {SOURCES[self.source].title}",
                f"blocks:       {list(self.blocks)} ({kind}{width})",
                f"norm:         {norm}",
                f"standardized: {f'yes, eps {self.ws_eps_mode} the root' if self.ws else 'no'}",
                f"minibatch:    {self.minibatch or batch}",
                f"stride in:    {'1x1' if self.stride_in_1x1 else '3x3'}",
                f"stem pooling: {self.stem_pool}",
                f"input:        {self.input_format}, mean {list(self.pixel_mean)}, "
                f"std {list(self.pixel_std)}",
                *detector,
            ]
        )


def describe_pretraining(
    source: str,
    norm: str,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    file_name: str,
    overrides: Mapping[str, Any],
    detector: bool = False,
) -> tuple[Pretraining, list[str]]:
    """Describe weights from their source, the file, its name and the user's overrides.

    Args:
        source: a key of `SOURCES`.
        norm: kind of the norms.
        state: the tensors under detectron2's names.
        metadata: other content of the file.
        file_name: its name.
        overrides: fields of `Pretraining` set by the user; None leaves a field alone.
        detector: whether the tensors are a whole detector's, as the file has its predictors.

    Returns:
        the description, and notes on what was taken from where.

    Raises:
        ValueError: it is not known whether the convolutions were standardized, or an override has a
            wrong name or value.
    """
    overrides = {key: value for key, value in overrides.items() if value is not None}
    for key in overrides:
        if key not in _OVERRIDABLE:
            raise ValueError(f"unknown option {key!r}; known: {', '.join(_OVERRIDABLE)}")
    if overrides.get("input_format", "RGB") not in ("RGB", "BGR"):
        raise ValueError(f"input_format ({overrides['input_format']!r}) must be 'RGB' or 'BGR'")
    if overrides.get("minibatch", 1) < 1:
        raise ValueError(f"minibatch ({overrides['minibatch']}) must be at least 1")
    notes: list[str] = []
    known = SOURCES[source]
    first = state["res2.0.conv2.weight"]
    stages = [re.match(r"res(\d)\.\d+\.conv1\.weight", key) for key in state]
    counts = [sum(m is not None and int(m[1]) == stage for m in stages) for stage in range(2, 6)]
    made = Pretraining(
        source,
        file_name,
        norm,
        ws_eps_mode=known.ws_eps_mode,
        unbiased=known.unbiased and "SN" in norm,
        blocks=tuple(count for count in counts if count),
        bottleneck="res2.0.conv3.weight" in state,
        groups=first.shape[0] // first.shape[1],
        width_per_group=first.shape[1],
        stem_pool=known.stem_pool,
        pixel_mean=known.pixel_mean,
        pixel_std=known.pixel_std,
    )
    if detector:
        _describe_detector(made, state)
    config = _saved_config(metadata) if source == "mmdet" else ""
    if config:
        notes.append("stride, input and pooling are from the config in the file")
        _read_config(made, config)
    if "ws" not in overrides:
        made.ws = _standardized(known.ws, norm, config, file_name, notes)
    if "minibatch" not in overrides:
        made.minibatch = _minibatch_from_name(source, file_name, notes)
    for key, value in overrides.items():
        setattr(made, key, tuple(value) if key.startswith("pixel") else value)
    return made, notes


def _describe_detector(made: Pretraining, state: Mapping[str, Tensor]) -> None:
    """All of these projects' two-stage detectors have the same deltas; coordinates differ."""
    made.box_weights = (10.0, 10.0, 5.0, 5.0)
    made.boxes, made.roi_align, made.roi_sampling = "exclusive", "ROIAlignV2", 0
    if has_background_first(state):
        if made.source == "mmdet":
            raise ValueError(
                "this is a detector of mmdetection before 2.0, whose anchors and boxes no model "
                "here has; --backbone-only converts its backbone"
            )
        fpn = any(name.startswith("backbone.fpn_") for name in state)
        # Detectron's configs with FPN take two points.
        made.boxes, made.roi_align, made.roi_sampling = "inclusive", "ROIAlign", 2 if fpn else 0


def _saved_config(metadata: Mapping[str, Any]) -> str:
    """The config that mmdetection saves in its checkpoints, as text."""
    meta = metadata.get("meta")
    for key in ("config", "cfg"):
        if isinstance(meta, Mapping) and isinstance(meta.get(key), str):
            return meta[key]
    return ""


def _read_config(made: Pretraining, config: str) -> None:
    def value(name: str, pattern: str) -> str | None:
        match = re.search(rf"\b{name}['\"]?\s*[=:]\s*{pattern}", config)
        return match[1] if match else None

    made.stride_in_1x1 = value("style", r"['\"](\w+)") == "caffe"
    to_rgb = value("to_rgb", r"(\w+)") or value("bgr_to_rgb", r"(\w+)")
    if to_rgb in ("False", "false"):
        made.input_format = "BGR"
    for name in ("mean", "std"):
        numbers = value(name, r"\[([\d.,\s]+)\]")
        if numbers is not None:
            pixel = tuple(float(number) for number in numbers.split(",") if number.strip())
            setattr(made, f"pixel_{name}", pixel)
    if made.roi_align is None:
        return
    # sample_num until mmdetection 2.2; RoIAlign subtracts half a pixel unless it is told not to.
    sampling = value("sampling_ratio", r"(\d+)") or value("sample_num", r"(\d+)")
    if sampling is not None:
        made.roi_sampling = int(sampling)
    if value("aligned", r"(\w+)") == "False":
        made.roi_align = "ROIAlign"


def _standardized(
    known: bool | None, norm: str, config: str, file_name: str, notes: list[str]
) -> bool:
    if known is not None:
        return known
    if config:
        notes.append("weight standardization, or not, is from the config in the file")
        return "ConvWS" in config
    if re.search(r"gn[_-]ws", file_name, re.IGNORECASE):
        notes.append("weight standardization is from the file's name")
        return True
    if norm == "BN":
        return False
    raise ValueError(
        "nothing in the file says whether these weights were trained with weight standardization, "
        "and their names and shapes are the same: say --ws or --no-ws (ws=True, ws=False)"
    )


def _minibatch_from_name(source: str, file_name: str, notes: list[str]) -> int | None:
    """SN's and SSN's files are named by (GPUs, images a GPU): "SN(8,32)", "ssn_8x2_75.848"."""
    match = re.search(r"\(\d+, ?(\d+)\)|_\d+x(\d+)_", file_name)
    if match is None or source not in ("sn", "ssn", "sn_detection"):
        return None
    notes.append("the minibatch is from the file's name")
    return int(match[1] or match[2])
