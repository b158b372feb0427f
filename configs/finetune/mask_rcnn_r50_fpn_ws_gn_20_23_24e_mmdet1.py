"""Mask R-CNN R-50-FPN, GN+WS, mmdetection's 20-23-24e as of its version 1.

Published: 41.1 box AP, 37.0 mask AP (mmdetection 1's table).
"""

from ..common.protocols.mmdetection1 import follow
from .mask_rcnn_r50_fpn_ws_gn_20_23_24e import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "20_23_24e")
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_gn_20_23_24e_mmdet1"
