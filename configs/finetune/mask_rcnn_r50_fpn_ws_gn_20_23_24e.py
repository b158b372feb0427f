"""Mask R-CNN R-50-FPN, GN+WS, mmdetection's 20-23-24e.

Published: 41.1 box AP, 37.1 mask AP (mmdetection's GN+WS table).
"""

from ..common.protocols.mmdetection import follow
from .mask_rcnn_r50_fpn_ws_gn_2x import dataloader, model, optimizer, train

lr_multiplier = follow(optimizer, train, "20_23_24e")
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_gn_20_23_24e"
