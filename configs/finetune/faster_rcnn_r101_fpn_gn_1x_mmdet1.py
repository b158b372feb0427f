"""Faster R-CNN R-101-FPN, GN, mmdetection's 1x as of its version 1.

Published: 39.8 box AP (mmdetection's pull request 521).
"""

from ..common.protocols.mmdetection1 import follow
from .faster_rcnn_r101_fpn_gn_1x import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "12e")
train.output_dir = "./output/finetune/faster_rcnn_r101_fpn_gn_1x_mmdet1"
