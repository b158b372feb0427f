"""Mask R-CNN X-50-32x4d-FPN, GN+WS, mmdetection's 20-23-24e as of its version 1.

Published: 41.9 box AP, 37.7 mask AP (mmdetection 1's table).
"""

from ..common.protocols.mmdetection1 import follow
from .mask_rcnn_x50_32x4d_fpn_ws_gn_20_23_24e import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "20_23_24e")
train.output_dir = "./output/finetune/mask_rcnn_x50_32x4d_fpn_ws_gn_20_23_24e_mmdet1"
