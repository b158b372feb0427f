"""Finetuning Mask R-CNN R-50-FPN on COCO with detectron2's jitter of the short side."""

from .data.coco import dataloader
from .models.mask_rcnn_fpn import model
from .optim import optimizer
from .train import train

model.backbone.bottom_up.freeze_at = 2
