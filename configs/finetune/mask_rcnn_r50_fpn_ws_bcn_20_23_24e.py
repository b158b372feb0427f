"""Mask R-CNN R-50-FPN, BCN+WS, mmdetection's 20-23-24e.

No COCO code was released: schedule and decay are those of the GN+WS rows; docs/norms.md has
the rest.
"""

from ..common.protocols.mmdetection import follow
from .mask_rcnn_r50_fpn_ws_bcn_2x import dataloader, model, optimizer, train

lr_multiplier = follow(optimizer, train, "20_23_24e")
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_bcn_20_23_24e"
