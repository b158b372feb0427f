"""Finetuning Faster R-CNN R-50-FPN on COCO: 16 images a step at one scale, stem and res2 frozen."""

from .data.coco_800 import dataloader
from .models.faster_rcnn_fpn import model
from .optim import optimizer
from .train import train

dataloader.train.mapper.use_instance_mask = False
model.backbone.bottom_up.freeze_at = 2
