"""Mask R-CNN R-50-FPN on COCO from random weights, detectron2's 3x: all layers train."""

from .data.coco import dataloader
from .models.mask_rcnn_fpn import model
from .optim import optimizer
from .protocols.detectron2 import follow
from .train import train

model.backbone.bottom_up.freeze_at = 0
lr_multiplier = follow(train, "3x")
