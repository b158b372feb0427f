"""The recipes and their models, loaded once for all tests that only look at them."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from wsbcn_d2 import recipes, register_norms

__all__ = ["config", "model_without_weights", "narrow", "narrow_config"]

# What configs call a number of channels.
_WIDTHS = {"in_channels", "out_channels", "bottleneck_channels", "channels", "conv_dims", "fc_dims"}


@functools.cache
def config(name: str) -> DictConfig:
    """A recipe, not to be changed."""
    return recipes.get_config(name)


@functools.cache
def model_without_weights(name: str) -> nn.Module:
    """Its model on the meta device, not to be changed."""
    register_norms()  # as loading the recipe did; another file's tests may have undone it
    with torch.device("meta"):
        return instantiate(config(name).model)


def narrow_config(name: str) -> DictConfig:
    """A recipe whose model and images are small enough to train a step in a fraction of a second.

    Builders, norms, heads and losses are the recipe's. Channels are fewer, a stage of a ResNet has
    two blocks, images have about 96 pixels a side, and few boxes are sampled.
    """
    cfg = copy.deepcopy(config(name))
    register_norms()  # as loading the recipe did; another file's tests may have undone it
    narrow(cfg.model)
    for augmentation in cfg.dataloader.train.mapper.augmentations:
        if "short_edge_length" in augmentation:
            augmentation.update(short_edge_length=[96], max_size=128, sample_style="choice")
        if "target_height" in augmentation:
            size = {"target_height": 128, "target_width": 128}
            augmentation.update(min_scale=0.9, max_scale=1.1, **size)
        if "crop_size" in augmentation:
            augmentation.crop_size = (128, 128)
    if "roi_heads" in cfg.model:
        cfg.model.roi_heads.batch_size_per_image = 16
        # No large anchor lies inside of so small an image: the coarse levels would not train.
        cfg.model.proposal_generator.anchor_boundary_thresh = -1
    return cfg


def narrow(node: Any) -> None:
    """Replace channels and blocks in a config, and in all that it contains."""
    if not isinstance(node, DictConfig | ListConfig):
        return
    if isinstance(node, DictConfig) and node.get("_target_") is ResNet.make_default_stages:
        node._target_ = _narrow_default_stages
        node.depth = min(node.depth, 50)
    keys = node.keys() if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        if OmegaConf.is_interpolation(node, key):
            continue
        if key in _WIDTHS:
            node[key] = _narrow_width(node[key])
        elif key == "num_blocks":
            node[key] = min(node[key], 2)
        elif key in ("stride_per_block", "dilation_per_block"):
            node[key] = node[key][:2]
        else:
            narrow(node[key])


def _narrow_width(width: Any) -> Any:
    """32, 64, 96, 128, … for 32, 64, 128, 256, …: what differed still does, in multiples of 32."""
    if isinstance(width, ListConfig | list | tuple):
        return [_narrow_width(w) for w in width]
    return width if width < 32 else 32 * round(math.log2(width / 16))


def _narrow_default_stages(depth: int, **kwargs: Any) -> list[list[nn.Module]]:
    """`ResNet.make_default_stages` with fewer channels, and two blocks a stage."""
    widths = [64, 64, 128, 256, 512] if depth < 50 else [64, 256, 512, 1024, 2048]
    widths = _narrow_width(widths)
    stages = []
    for i, (in_channels, out_channels) in enumerate(itertools.pairwise(widths)):
        if depth >= 50:
            kwargs["bottleneck_channels"] = _narrow_width(64 * 2**i)
        stages.append(
            ResNet.make_stage(
                BasicBlock if depth < 50 else BottleneckBlock,
                num_blocks=2,
                stride_per_block=[1 if i == 0 else 2, 1],
                in_channels=in_channels,
                out_channels=out_channels,
                **kwargs,
            )
        )
    return stages
