"""Mask R-CNN R-101-FPN, GN+WS, mmdetection's 2x.

Published: 42.0 box AP, 37.7 mask AP (mmdetection's GN+WS table).
"""

from .mask_rcnn_r50_fpn_ws_gn_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_gn_ws"
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_ws_gn_2x"
