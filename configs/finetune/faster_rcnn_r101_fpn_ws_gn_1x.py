"""Faster R-CNN R-101-FPN, GN+WS, mmdetection's 1x.

Published: 41.7 box AP (mmdetection's GN+WS table).
"""

from .faster_rcnn_r50_fpn_ws_gn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_gn_ws"
train.output_dir = "./output/finetune/faster_rcnn_r101_fpn_ws_gn_1x"
