"""Mask R-CNN R-50-FPN, GN, detectron2's 3x.

Published: 42.6 box AP, 38.6 mask AP (detectron2's model zoo).
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn_jitter import dataloader, model, optimizer, train
from ..common.protocols.detectron2 import follow

use_norm(model, "GN")
lr_multiplier = follow(train, "3x")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_3x"
