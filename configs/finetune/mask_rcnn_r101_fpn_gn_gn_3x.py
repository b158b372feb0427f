"""Mask R-CNN R-101-FPN, GN in backbone, FPN and heads, Detectron's 3x.

Published: 42.3 box AP, 37.2 mask AP (Detectron's GN).
"""

from .mask_rcnn_r50_fpn_gn_gn_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_gn"
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_gn_gn_3x"
