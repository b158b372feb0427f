"""Finetuning Faster R-CNN R-50-C4 on COCO: 16 images a step at one scale, conv5 as the box head."""

from .data.coco_800 import dataloader
from .models.faster_rcnn_c4 import model
from .optim import optimizer
from .train import train

dataloader.train.mapper.use_instance_mask = False
