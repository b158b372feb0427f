"""A trained detector in plain layers: what is fixed in evaluation goes into the convolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from ..modeling.norm_registry import InstanceNorm2d
from ..modeling.weight_standardization import plain_conv
from ..norms import BatchChannelNorm2d, BatchRenorm2d, SyncBatchNorm2d, WSConvMixin
from ..norms.switchable_norm import SwitchNorm

__all__ = ["Folding", "fold_model"]

_GROUPS, _EPS = 32, 1e-5  # of detectron2's "GN"
_OURS = (BatchChannelNorm2d, BatchRenorm2d, InstanceNorm2d, SwitchNorm, SyncBatchNorm2d)


@dataclass
class Folding:
    """What `fold_model` did.

    Attributes:
        model: the folded copy, in evaluation mode.
        standardized: convolutions whose standardized weight is now their weight.
        biased: convolutions that a norm went into, wholly or in part: they have a bias now.
        removed: those of them that have no norm any more.
        remaining: norms of this package that are left, by class: they need sample statistics, or no
            convolution is before them.
    """

    model: nn.Module
    standardized: list[str] = field(default_factory=list)
    biased: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    remaining: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{len(self.standardized)} standardized convolutions are plain now",
            f"{len(self.removed)} norms went into the convolution before them",
            f"{len(self.biased) - len(self.removed)} BCN layers are group norms now",
        ]
        for kind, names in self.remaining.items():
            lines.append(f"{len(names)} {kind} layers still need wsbcn_d2: {', '.join(names)}")
        return "\n".join(lines)


@torch.no_grad()
def fold_model(model: nn.Module) -> Folding:
    """Fold a copy of a detector; it computes the same in evaluation.

    * Weight standardization: the standardized weight becomes the weight.
    * BN, FrozenBN, BRN, and SN whose ratios all chose the batch statistic: an affine in evaluation,
      which goes into the convolution.
    * BCN: its batch stage goes into the convolution, and its channel stage is a group norm.

    Norms go into the convolution whose ``norm`` they are; in a sequence of modules, as RetinaNet's
    heads are, they stay. Either all of a model's BCN layers are folded, or none.

    Args:
        model: trained; left as it is.
    """
    folding = Folding(copy.deepcopy(model).eval())
    for name, conv in _standardized(folding.model):
        weight = conv.standardized_weight().detach().clone()
        plain_conv(conv).weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        folding.standardized.append(name)
    convs = {
        name: module
        for name, module in folding.model.named_modules()
        if isinstance(module, Conv2d) and module.norm is not None
    }
    bcn = [m for m in folding.model.modules() if isinstance(m, BatchChannelNorm2d)]
    before_bcn = [conv for conv in convs.values() if isinstance(conv.norm, BatchChannelNorm2d)]
    folds_bcn = len(bcn) == len(before_bcn) and all(
        (norm.num_groups, norm.eps) == (_GROUPS, _EPS) for norm in bcn
    )
    for name, conv in convs.items():
        if isinstance(conv.norm, BatchChannelNorm2d) and not folds_bcn:
            continue
        affine = _affine(conv.norm)
        if affine is None:
            continue
        _scale(conv, *affine)
        folding.biased.append(name)
        if isinstance(conv.norm, BatchChannelNorm2d):
            conv.norm = _channel_stage(conv.norm)
        else:
            conv.norm = None
            folding.removed.append(name)
    for name, module in folding.model.named_modules():
        if isinstance(module, _OURS):
            folding.remaining.setdefault(type(module).__name__, []).append(name)
    return folding


def _standardized(model: nn.Module) -> Iterator[tuple[str, WSConvMixin]]:
    for name, module in model.named_modules():
        if isinstance(module, WSConvMixin):
            yield name, module


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Scale and offset of a norm that is affine in evaluation, in float64; otherwise None.

    Of BCN, those of its batch stage.
    """
    if isinstance(norm, BatchChannelNorm2d):
        norm = norm.bn
    elif isinstance(norm, SwitchNorm):
        if not _chose_batch(norm):
            return None
    elif not isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d, BatchRenorm2d, SyncBatchNorm2d)):
        return None
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:  # torch's, that never kept any
        return None
    scale = (var.double() + norm.eps).rsqrt()
    offset = torch.zeros_like(scale)
    if norm.weight is not None:
        scale *= norm.weight
        offset += norm.bias
    return scale, offset - mean * scale


def _chose_batch(norm: SwitchNorm) -> bool:
    if "bn" not in norm.statistics:
        return False
    at = norm.statistics.index("bn")
    # One in float32: what the others would add is lost in rounding.
    return all(bool((ratios[..., at].float() == 1).all()) for ratios in norm.ratios())


def _scale(conv: Conv2d, scale: Tensor, offset: Tensor) -> None:
    dtype, bias = conv.weight.dtype, conv.bias
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    total = offset if bias is None else offset + bias.double() * scale
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(total.to(dtype), requires_grad=False)


def _channel_stage(norm: BatchChannelNorm2d) -> nn.GroupNorm:
    """GN with BCN's one affine pair a group at each of its channels."""
    width = norm.num_features // norm.num_groups
    group_norm = nn.GroupNorm(norm.num_groups, norm.num_features, norm.eps)
    for name in ("weight", "bias"):
        values = getattr(norm, name).repeat_interleave(width).clone()
        setattr(group_norm, name, nn.Parameter(values, requires_grad=False))
    return group_norm
