"""What a published detector presumes of the model that evaluates it, given to that model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import nn

from ..modeling.inclusive_boxes import use_inclusive_boxes
from ..norms.switchable_norm import SwitchNorm

__all__ = ["take_inference_settings"]


def take_inference_settings(pretraining: Mapping[str, Any], model: nn.Module) -> None:
    """Pool, scale and read boxes as the converted detector did in its project, in place.

    Args:
        pretraining: of a converted detector, with ``roi_align``, ``roi_sampling``, ``box_weights``,
            ``boxes``, ``unbiased``, and ``pixel_mean`` and ``pixel_std`` in the order of
            ``input_format``.
        model: a Faster or Mask R-CNN.
    """
    for module in model.modules():
        if isinstance(module, ROIPooler):
            for pooler in module.level_poolers:
                if isinstance(pooler, ROIAlign):
                    pooler.aligned = pretraining["roi_align"] == "ROIAlignV2"
                    pooler.sampling_ratio = pretraining["roi_sampling"]
        if isinstance(module, SwitchNorm):
            module.unbiased = pretraining["unbiased"]
        if isinstance(module, FastRCNNOutputLayers):
            module.box2box_transform.weights = tuple(pretraining["box_weights"])
    if pretraining["boxes"] == "inclusive":
        use_inclusive_boxes(model)
    if getattr(model, "input_format", None) == pretraining["input_format"]:
        for key in ("pixel_mean", "pixel_std"):
            pixel = getattr(model, key)
            pixel.copy_(torch.tensor(pretraining[key]).view_as(pixel))
