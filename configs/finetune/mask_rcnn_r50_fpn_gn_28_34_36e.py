"""Mask R-CNN R-50-FPN, GN, mmdetection's 28-34-36e (its 3x).

Published: 40.5 box AP, 36.7 mask AP (mmdetection's GN table).
"""

from ..common.protocols.mmdetection import follow
from .mask_rcnn_r50_fpn_gn_2x import dataloader, model, optimizer, train

lr_multiplier = follow(optimizer, train, "28_34_36e")
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_28_34_36e"
