"""Mask R-CNN R-50-FPN on COCO from random weights, 3x: all layers train."""

from .coco_schedule import lr_multiplier_3x as lr_multiplier
from .coco_schedule import max_iter_3x
from .data.coco import dataloader
from .models.mask_rcnn_fpn import model
from .optim import optimizer
from .train import train

model.backbone.bottom_up.freeze_at = 0
train.max_iter = max_iter_3x
