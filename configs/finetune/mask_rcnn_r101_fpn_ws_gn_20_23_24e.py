"""Mask R-CNN R-101-FPN, GN+WS, mmdetection's 20-23-24e.

Published: 43.1 box AP, 38.6 mask AP (mmdetection's GN+WS table).
"""

from .mask_rcnn_r50_fpn_ws_gn_20_23_24e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_gn_ws"
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_ws_gn_20_23_24e"
