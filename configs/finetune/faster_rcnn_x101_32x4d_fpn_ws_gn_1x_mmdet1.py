"""Faster R-CNN X-101-32x4d-FPN, GN+WS, mmdetection's 1x as of its version 1.

Published: 41.8 box AP (mmdetection's pull request 521).
"""

from ..common.protocols.mmdetection1 import follow
from .faster_rcnn_x101_32x4d_fpn_ws_gn_1x import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "12e")
train.output_dir = "./output/finetune/faster_rcnn_x101_32x4d_fpn_ws_gn_1x_mmdet1"
