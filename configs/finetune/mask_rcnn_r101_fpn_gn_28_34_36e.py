"""Mask R-CNN R-101-FPN, GN, mmdetection's 28-34-36e (its 3x).

Published: 42.1 box AP, 38.0 mask AP (mmdetection's GN table).
"""

from .mask_rcnn_r50_fpn_gn_28_34_36e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_gn"
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_gn_28_34_36e"
