"""Mask R-CNN R-50-FPN, GN in backbone, FPN and heads, Detectron's 3x.

Published: 40.8 box AP, 36.1 mask AP (Detectron's GN).
"""

from ..common.protocols.detectron1 import follow
from .mask_rcnn_r50_fpn_gn_gn_2x import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "3x")
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_gn_3x"
