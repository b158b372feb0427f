"""Finetuning Keypoint R-CNN R-50-FPN on COCO, 1x, as detectron2's own recipe but for `from_zoo`."""

from .coco_schedule import lr_multiplier_1x as lr_multiplier
from .data.coco_keypoint import dataloader
from .models.zoo import from_zoo
from .optim import optimizer
from .train import train

model = from_zoo("keypoint_rcnn_fpn")
model.backbone.bottom_up.freeze_at = 2
