"""Mask R-CNN R-50-FPN, GN, mmdetection's 2x.

Published: 40.2 box AP, 36.4 mask AP (mmdetection's GN table).
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.mmdetection import follow

use_norm(model, "GN")
lr_multiplier = follow(optimizer, train, "24e")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_2x"
