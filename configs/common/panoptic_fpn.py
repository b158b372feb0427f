"""Finetuning Panoptic FPN R-50 on COCO, 1x, as detectron2's own recipe but for `from_zoo`."""

from .data.coco_panoptic import dataloader
from .models.zoo import from_zoo
from .optim import optimizer
from .protocols.detectron2 import follow
from .train import train

model = from_zoo("panoptic_fpn")
model.backbone.bottom_up.freeze_at = 2
lr_multiplier = follow(train, "1x")
