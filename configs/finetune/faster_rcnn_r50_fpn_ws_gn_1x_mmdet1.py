"""Faster R-CNN R-50-FPN, GN+WS, mmdetection's 1x as of its version 1.

Published: 38.9 box AP (mmdetection's pull request 521).
"""

from ..common.protocols.mmdetection1 import follow
from .faster_rcnn_r50_fpn_ws_gn_1x import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "12e")
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_ws_gn_1x_mmdet1"
