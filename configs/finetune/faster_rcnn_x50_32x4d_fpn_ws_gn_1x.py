"""Faster R-CNN X-50-32x4d-FPN, GN+WS, mmdetection's 1x.

Published: 40.7 box AP (mmdetection's GN+WS table).
"""

from ..common.models.zoo import resnext_stages
from .faster_rcnn_r50_fpn_ws_gn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = resnext_stages(50, norm="GN")
train.pretrained = "wsbcn://resnext50_32x4d_gn_ws"
train.output_dir = "./output/finetune/faster_rcnn_x50_32x4d_fpn_ws_gn_1x"
