"""The recipes and their models, loaded once for all tests that only look at them."""

from __future__ import annotations

import functools

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from wsbcn_d2 import recipes

__all__ = ["config", "model_without_weights"]


@functools.cache
def config(name: str) -> DictConfig:
    """A recipe, not to be changed."""
    return recipes.get_config(name)


@functools.cache
def model_without_weights(name: str) -> nn.Module:
    """Its model on the meta device, not to be changed."""
    with torch.device("meta"):
        return instantiate(config(name).model)
