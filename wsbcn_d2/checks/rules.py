"""The checks: the SN paper's Table XI (arXiv:1907.10473) and the traps of ``docs/traps.md``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import torch
from detectron2.layers.batch_norm import CycleBatchNormList
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ..checkpoint import CATALOG
from ..checkpoint.reading import CheckpointError, read_checkpoint
from ..config.run_config import BATCH_KEYS
from ..modeling.norm_registry import NORMS
from ..modeling.resnetv2 import BiTConv2d
from ..modeling.weight_standardization import norm_of_convs
from ..norms import SwitchNorm, WSConvMixin
from .advice import Found, Setting, check

__all__: list[str] = []

# Norms of this project, whose published recipes decay no parameter of a norm.
_OURS = ("SN", "SN_IN_LN", "SyncSN", "SSN", "BCN", "BatchBCN", "SyncBCN")
_LARGEST_DROPOUT = 0.2
# "Comparable" batch sizes are the paper's word; (8, 32) finetuned with 2 images is its bad example.
_FAR = 4


def _images(setting: Setting, kind: str) -> int | None:
    """Images that a kind's batch statistics are taken over; None where the config hides it."""
    plan = setting.plan
    if plan is None:
        return None
    group = setting.config.options.sync_group_size
    pooled = group if isinstance(group, int) and group else plan.world_size
    return plan.images_per_gpu * (pooled if NORMS[kind].statistics == "ranks" else 1)


@check("one-image-a-process", "warning")
def _one_image(setting: Setting) -> Iterator[Found]:
    for kind in setting.kinds_over("process", "ranks"):
        names = setting.trained_norms(kind)
        if names and _images(setting, kind) == 1:
            pooled = (
                ", over all processes that pool them" if NORMS[kind].statistics == "ranks" else ""
            )
            yield (
                setting.config.key("images_per_gpu"),
                f"{len(names)} layers, such as {names[0]}, are {kind}, and a process sees one image"
                f"{pooled}: batch statistics are the image's in training and running ones in "
                "evaluation, so it trains well and tests badly (arXiv:1907.10473, Sec. 4.1.2: SN "
                "has no BN at (8,1); docs/traps.md, 4)",
                "SyncSN or SyncBCN over several processes, SN_IN_LN, GN or BCN; or more images a "
                "process",
            )


@check("norm-after-global-pooling", "warning")
def _after_pooling(setting: Setting) -> Iterator[Found]:
    for name, module in setting.model.named_modules():
        for pool, after in itertools.pairwise(module.children()):
            norm = after if isinstance(after, SwitchNorm) else getattr(after, "norm", None)
            size = getattr(pool, "output_size", None)
            if size in (1, (1, 1)) and isinstance(norm, SwitchNorm):
                only_in = norm.statistics == ("in",)
                yield (
                    f"model: {name}",
                    "SN on the 1 x 1 map of a global pooling: IN's variance is 0 there, LN's that "
                    "of the channels (arXiv:1907.10473, Table XI item 5: unstable)",
                    "no norm there, or a bias in its place",
                    "error" if only_in else "warning",
                )


@check("controls-not-uniform", "warning")
def _controls(setting: Setting) -> Iterator[Found]:
    for name, module in setting.model.named_modules():
        if not isinstance(module, SwitchNorm) or module.mean_weight.is_meta:
            continue
        controls = torch.stack([module.mean_weight.detach(), module.var_weight.detach()])
        if not torch.equal(controls, controls[..., :1].expand_as(controls)):
            yield (
                f"model: {name}",
                "this SN layer's ratios do not start uniform (arXiv:1907.10473, Table XI item 1, "
                "Table III: other initial ratios may harm generalization)",
                "equal values in mean_weight and in var_weight, as SwitchNorm2d makes them; or "
                "start from trained weights, with train.init_checkpoint",
            )
            return


@check("pretraining-minibatch", "warning")
def _pretraining(setting: Setting) -> Iterator[Found]:
    options = setting.config.options
    weights = options.init_checkpoint or options.pretrained
    before = _pretraining_minibatch(weights)
    if before is None:
        return
    for kind in setting.kinds_over("process", "ranks"):
        now = _images(setting, kind)
        pretrained = [
            name
            for name in setting.trained_norms(kind)
            if name.startswith("backbone.") and not name.startswith("backbone.fpn_")
        ]
        if now and pretrained and max(before, now) > _FAR * min(before, now):
            yield (
                setting.config.key("init_checkpoint"),
                f"{weights} was trained with batch statistics over {before} images, {kind} takes "
                f"them over {now} (arXiv:1907.10473, Table XI item 4, Sec. 4.3.2: they should be "
                "comparable)",
                "weights pretrained nearer to it (docs/weights.md), SyncSN, or SN_IN_LN",
            )


def _pretraining_minibatch(weights: str) -> int | None:
    if weights.startswith("wsbcn://"):
        entry = CATALOG.get(weights.removeprefix("wsbcn://"))
        return None if entry is None else entry.options.get("minibatch")
    if not os.path.isfile(weights):
        return None
    try:
        checkpoint = read_checkpoint(weights, mmap=True)
    except CheckpointError:
        return None  # loading says what is wrong with it
    records = [checkpoint.get(key) or {} for key in ("norms", "pretraining")]
    found: int | None = (records[0] | records[1]).get("minibatch")
    return found


@check("norm-weight-decay", "warning")
def _weight_decay(setting: Setting) -> Iterator[Found]:
    names, find = setting.trained_norms(*_OURS), setting.config.find
    if not names or find("optimizer.params", "SOLVER")[1] is None:
        return
    key, decay = find("optimizer.params.weight_decay_norm", "SOLVER.WEIGHT_DECAY_NORM")
    if decay is None:  # detectron2 takes that of all other parameters
        _, decay = find("optimizer.weight_decay", "SOLVER.WEIGHT_DECAY")
    if decay:
        yield (
            key,
            f"weight decay {decay:g} on the parameters of {len(names)} norms, such as {names[0]}: "
            "it pulls SN's ratios back to uniform, and the published COCO recipes have none there "
            "(docs/traps.md, 7)",
            "0",
        )


@check("dropout-behind-sn", "note")
def _dropout(setting: Setting) -> Iterator[Found]:
    for name, module in setting.model.named_modules():
        children = [child for child in module.children() if not isinstance(child, nn.ReLU)]
        for before, dropout in itertools.pairwise(children):
            norm = before if isinstance(before, SwitchNorm) else getattr(before, "norm", None)
            strong = isinstance(dropout, _DropoutNd) and dropout.p > _LARGEST_DROPOUT
            if strong and isinstance(norm, SwitchNorm):
                yield (
                    f"model: {name}",
                    f"dropout of {dropout.p:g} behind SN (arXiv:1907.10473, Table XI item 2: 0.1 "
                    "to 0.2 gave a minor improvement in ImageNet; no detector of the paper has it)",
                    f"at most {_LARGEST_DROPOUT}, or none",
                )


@check("ws-without-norm", "warning")
def _ws_without_norm(setting: Setting) -> Iterator[Found]:
    followed = set(map(id, norm_of_convs(setting.model)))
    names = [
        name
        for name, module in setting.model.named_modules()
        if isinstance(module, WSConvMixin)
        and id(module) not in followed
        and not isinstance(module, BiTConv2d)  # BiT's norms stand in front
    ]
    if names:
        yield (
            f"model: {names[0]}",
            f"{len(names)} convolutions are weight-standardized and no norm follows them: their "
            "filters cannot scale the output (arXiv:1903.10520, Sec. 3; docs/traps.md, 8)",
            "a plain convolution there; standardize_convs leaves such ones alone",
        )


@check("frozen-estimates", "warning")
def _frozen(setting: Setting) -> Iterator[Found]:
    options = setting.config.options
    followed = norm_of_convs(setting.model)
    kinds = {module: setting.norms.get(name) for name, module in setting.model.named_modules()}
    frozen = [conv for conv in followed if not conv.weight.requires_grad]
    moving = [
        kinds[norm]
        for norm in (followed[conv] for conv in frozen)
        if kinds.get(norm) in setting.kinds_over("process", "ranks", "estimates")
        and any(p.requires_grad for p in norm.parameters())
    ]
    key, _ = setting.config.find("model.backbone.bottom_up.freeze_at", "MODEL.BACKBONE.FREEZE_AT")
    if moving:
        yield (
            key,
            f"{len(moving)} convolutions are frozen and the norms behind them are not: their "
            f"estimates ({moving[0]}) go on moving (docs/traps.md, 5)",
            "freeze the norm's parameters too, as freeze_at does: then it keeps its estimates",
        )
    if frozen and not (options.init_checkpoint or options.pretrained):
        yield (
            key,
            f"{len(frozen)} convolutions are frozen, and the run starts from random weights: they "
            "stay random, and so do the estimates of their norms",
            f"0, or weights to start from ({setting.config.key('init_checkpoint')})",
        )


@check("learning-rate-of-another-batch", "warning")
def _learning_rate(setting: Setting) -> Iterator[Found]:
    scale, plan = setting.config.options.scale_lr, setting.plan
    if plan is None or scale.enabled or plan.total == scale.reference_batch_size:
        return
    key = setting.config.key
    yield (
        setting.config.find(*BATCH_KEYS)[0],
        f"{plan.total} images a step, and the learning rate is for {scale.reference_batch_size} "
        "(the linear rule, arXiv:1706.02677, Sec. 2.1)",
        f"{key('scale_lr.enabled')}, which scales rate and warm-up; or, where the rate is for "
        f"{plan.total} already, {key('scale_lr.reference_batch_size')}",
    )


@check("gn-one-channel", "note")
def _one_channel(setting: Setting) -> Iterator[Found]:
    names = [
        name
        for name, module in setting.model.named_modules()
        if isinstance(module, nn.GroupNorm) and 1 < module.num_channels <= module.num_groups
    ]
    if names:
        yield (
            f"model: {names[0]}",
            f"{len(names)} norms have as many groups as channels: GN is IN there, as BCN's channel "
            "norm is (arXiv:1803.08494, Sec. 4.1, Table 3: an error in ImageNet of 28.4 %, against "
            "25.6 % with two channels a group)",
            "fewer groups (by a callable that makes the norm; by name, 32), or more channels",
        )


@check("shared-norms", "warning")
def _shared(setting: Setting) -> Iterator[Found]:
    detector = setting.model
    if not isinstance(detector, DenseDetector):
        return
    modules = dict(detector.named_modules())
    kinds = setting.kinds_over("process", "ranks", "estimates")
    names = [
        name
        for name in setting.trained_norms(*kinds)
        if name.startswith("head.")
        and not isinstance(modules[name.rpartition(".")[0]], CycleBatchNormList)
    ]
    if names:
        yield (
            setting.config.find("model.head.norm", "MODEL.RETINANET.NORM")[0],
            f"{len(names)} norms of the head, such as {names[0]} ({setting.norms[names[0]]}), run "
            "on all levels: their running statistics mix the levels', which none has in training "
            "(arXiv:2105.07576, Table 5: RetinaNet with SyncBN in the head)",
            "SN_IN_LN or GN in the head: use_norm(model, backbone, head)",
        )
