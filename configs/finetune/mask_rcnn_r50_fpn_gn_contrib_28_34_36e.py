"""Mask R-CNN R-50-FPN, GN, from contributed weights, mmdetection's 28-34-36e (its 3x).

Published: 40.1 box AP, 36.2 mask AP (mmdetection's GN table).
"""

from .mask_rcnn_r50_fpn_gn_28_34_36e import dataloader, lr_multiplier, model, optimizer, train

train.pretrained = "wsbcn://resnet50_gn_contrib"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_contrib_28_34_36e"
