"""Mask R-CNN X-50-32x4d-FPN, GN+WS, mmdetection's 2x.

Published: 41.1 box AP, 37.0 mask AP (mmdetection's GN+WS table).
"""

from ..common.models.zoo import resnext_stages
from .mask_rcnn_r50_fpn_ws_gn_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = resnext_stages(50, norm="GN")
train.pretrained = "wsbcn://resnext50_32x4d_gn_ws"
train.output_dir = "./output/finetune/mask_rcnn_x50_32x4d_fpn_ws_gn_2x"
