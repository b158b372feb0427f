"""Mask R-CNN R-50-FPN, GN, mmdetection's 2x as of its version 1.

Published: 39.9 box AP, 36.0 mask AP (mmdetection's pull request 521).
"""

from ..common.protocols.mmdetection1 import follow
from .mask_rcnn_r50_fpn_gn_2x import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "24e")
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_2x_mmdet1"
