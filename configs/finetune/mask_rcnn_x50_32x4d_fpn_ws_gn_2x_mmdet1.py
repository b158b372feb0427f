"""Mask R-CNN X-50-32x4d-FPN, GN+WS, mmdetection's 2x as of its version 1.

Published: 40.7 box AP, 36.7 mask AP (mmdetection's pull request 521).
"""

from ..common.protocols.mmdetection1 import follow
from .mask_rcnn_x50_32x4d_fpn_ws_gn_2x import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "24e")
train.output_dir = "./output/finetune/mask_rcnn_x50_32x4d_fpn_ws_gn_2x_mmdet1"
