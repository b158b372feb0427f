"""Whether a model is what converted weights were trained in, beyond its norms' kinds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.utils import comm
from torch import nn

from ..norms import WSConvMixin
from .norm_kinds import describe_norms, match_names

__all__ = ["check_pretraining", "compare_pretraining"]

logger = logging.getLogger(__name__)

# Norms whose training statistics depend on how many images there are, of one process or of all.
_OF_PROCESS = ("BN", "SN", "SSN", "BatchBCN")
_OF_ALL = ("SyncBN", "SyncSN", "SyncBCN")
# "Comparable" batch sizes are the paper's word; (8, 32) finetuned with 2 images is its bad example.
_FAR = 4
# A shift of a pixel value that no rounding makes.
_PIXEL_TOLERANCE = 0.5


def check_pretraining(
    path: str,
    recorded: Mapping[str, Any] | None,
    norms: Mapping[str, Any] | None,
    model: nn.Module,
    images_per_process: int | None,
) -> None:
    """Warn, in the log, of every difference that `compare_pretraining` finds.

    Args:
        path: the checkpoint's, for the message.
        recorded: what `convert_weights` saved under ``"pretraining"``; None: nothing.
        norms: what it saved under ``"norms"``.
        model: the model that it is loaded into.
        images_per_process: as in `compare_pretraining`.
    """
    if not recorded:
        return
    lines = compare_pretraining(recorded, norms or {}, model, images_per_process)
    if lines:
        logger.warning(
            "!!! THE WEIGHTS' PRETRAINING DIFFERS FROM THE MODEL'S SETTING: %s\n%s",
            path,
            "\n".join(f"  * {line}" for line in lines),
        )
    if recorded["unbiased"] and any(getattr(m, "unbiased", None) is False for m in model.modules()):
        logger.info(
            "These SN weights were trained with variances of divisor L - 1, L positions a channel. "
            "The model's has L: next to nothing on the maps of a detector, some percent on maps of "
            "7x7. SwitchNorm2d(…, unbiased=True) reproduces the published features."
        )


def compare_pretraining(
    recorded: Mapping[str, Any],
    norms: Mapping[str, Any],
    model: nn.Module,
    images_per_process: int | None = None,
) -> list[str]:
    """How the model and its training differ from the pretraining of the weights.

    Args:
        recorded: a `Pretraining`, as a dict.
        norms: what `describe_norms` would say of the pretrained network.
        model: the model that the weights are loaded into.
        images_per_process: images that a process sees at a time in the training to come, without
            accumulation; None: not to be compared (evaluation).

    Returns:
        one line for each difference, naming both sides.
    """
    lines = [
        *_compare_standardization(recorded, norms, model),
        *_compare_blocks(recorded, model),
        *_compare_input(recorded, model),
    ]
    if images_per_process is not None:
        lines += _compare_minibatch(recorded, norms, model, images_per_process)
    return lines


def _compare_standardization(
    recorded: Mapping[str, Any], norms: Mapping[str, Any], model: nn.Module
) -> Iterator[str]:
    ours = {name: m.eps_mode for name, m in model.named_modules() if isinstance(m, WSConvMixin)}
    modes = {ours[name] for name in match_names(norms.get("convs", {}), ours).values()}
    if recorded["ws"] and modes and modes != {recorded["ws_eps_mode"]}:
        yield (
            f"weight standardization: eps_mode {recorded['ws_eps_mode']!r} in pretraining, "
            f"{', '.join(map(repr, sorted(modes)))} in the model (ws_eps_mode=… of `standardized`, "
            "MODEL.WSBCN.EPS_MODE)"
        )


def _compare_blocks(recorded: Mapping[str, Any], model: nn.Module) -> Iterator[str]:
    strides = {
        module.conv1.stride != (1, 1)
        for module in model.modules()
        if isinstance(module, BottleneckBlock) and module.stride > 1
    }
    if recorded["bottleneck"] and strides and strides != {recorded["stride_in_1x1"]}:
        theirs, ours = ("1x1", "3x3") if recorded["stride_in_1x1"] else ("3x3", "1x1")
        yield (
            f"bottlenecks: stride in the {theirs} convolution in pretraining, in the {ours} in the "
            "model (stride_in_1x1, MODEL.RESNETS.STRIDE_IN_1X1)"
        )
    pools = {
        getattr(module, "stem_pool", "padded")
        for module in model.modules()
        if isinstance(module, BasicStem)
    }
    if pools and pools != {recorded["stem_pool"]}:
        yield (
            f"stem: {recorded['stem_pool']} max pooling in pretraining, "
            f"{', '.join(sorted(pools))} in the model (wsbcn_d2.modeling.CeilPoolStem is the ceil "
            "one, detectron2's BasicStem the padded)"
        )


def _compare_input(recorded: Mapping[str, Any], model: nn.Module) -> Iterator[str]:
    ours = getattr(model, "input_format", None)
    if isinstance(ours, str) and ours != recorded["input_format"]:
        yield f"input: {recorded['input_format']} in pretraining, {ours} in the model"
        return  # the means' orders differ with it
    for name in ("pixel_mean", "pixel_std"):
        pixel = getattr(model, name, None)
        if not isinstance(pixel, torch.Tensor) or pixel.numel() != len(recorded[name]):
            continue
        theirs = torch.tensor(recorded[name])
        if (pixel.flatten().cpu().float() - theirs).abs().max() > _PIXEL_TOLERANCE:
            yield (
                f"input: {name} {_numbers(theirs)} in pretraining, {_numbers(pixel)} in the model"
            )


def _numbers(pixel: torch.Tensor) -> str:
    return str([round(float(number), 3) for number in pixel.flatten()])


def _compare_minibatch(
    recorded: Mapping[str, Any], norms: Mapping[str, Any], model: nn.Module, images: int
) -> Iterator[str]:
    theirs: Mapping[str, str] = norms.get("norms", {})
    trained = {kind for kind in theirs.values() if kind in (*_OF_PROCESS, *_OF_ALL)}
    ours = describe_norms(model)["norms"]
    modules = dict(model.named_modules())
    # Frozen norms keep the pretraining's statistics.
    kinds = {
        ours[name]
        for name in match_names(theirs, ours).values()
        if any(parameter.requires_grad for parameter in modules[name].parameters())
    }
    for kind in sorted(kinds & {*_OF_PROCESS, *_OF_ALL}):
        if not trained:
            continue
        size = images * comm.get_world_size() if kind in _OF_ALL else images
        pooled = "over all processes" if kind in _OF_ALL else "a process"
        before = recorded["minibatch"]
        if before is None:
            logger.info(
                "The minibatch of the weights' pretraining is not recorded; %s sees %d images %s",
                kind, size, pooled,
            )  # fmt: skip
        elif max(before, size) > _FAR * min(before, size):
            yield (
                f"minibatch: statistics over {before} images in pretraining, over {size} {pooled} "
                f"with the model's {kind}. arXiv:1907.10473, Table XI: the two should be "
                "comparable; take weights pretrained nearer to it, synchronize (SyncSN), or use a "
                "norm without batch statistics"
            )
