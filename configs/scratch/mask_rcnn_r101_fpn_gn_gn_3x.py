"""Mask R-CNN R-101-FPN, GN in backbone, FPN and heads, from random weights, Detectron's 3x.

Published: 41.0 box AP, 36.4 mask AP (Detectron's GN).
"""

from .mask_rcnn_r50_fpn_gn_gn_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.output_dir = "./output/scratch/mask_rcnn_r101_fpn_gn_gn_3x"
