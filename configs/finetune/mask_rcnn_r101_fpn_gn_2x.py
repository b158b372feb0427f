"""Mask R-CNN R-101-FPN, GN, mmdetection's 2x.

Published: 41.9 box AP, 37.6 mask AP (mmdetection's GN table).
"""

from .mask_rcnn_r50_fpn_gn_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_gn"
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_gn_2x"
