"""Mask R-CNN X-101-32x4d-FPN, GN+WS, mmdetection's 20-23-24e.

Published: 42.7 box AP, 38.5 mask AP (mmdetection's GN+WS table).
"""

from ..common.models.zoo import resnext_stages
from .mask_rcnn_r50_fpn_ws_gn_20_23_24e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = resnext_stages(101, norm="GN")
train.pretrained = "wsbcn://resnext101_32x4d_gn_ws"
train.output_dir = "./output/finetune/mask_rcnn_x101_32x4d_fpn_ws_gn_20_23_24e"
