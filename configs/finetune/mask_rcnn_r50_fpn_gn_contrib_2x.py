"""Mask R-CNN R-50-FPN, GN, from contributed weights, mmdetection's 2x.

Published: 40.0 box AP, 36.1 mask AP (mmdetection's GN table).
"""

from .mask_rcnn_r50_fpn_gn_2x import dataloader, lr_multiplier, model, optimizer, train

train.pretrained = "wsbcn://resnet50_gn_contrib"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_contrib_2x"
