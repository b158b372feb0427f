"""Faster R-CNN R-50-FPN, GN+WS, mmdetection's 1x.

Published: 39.7 box AP (mmdetection's GN+WS table).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.mmdetection import follow

use_norm(model, "GN", standardize=True)
lr_multiplier = follow(optimizer, train, "12e")
train.pretrained = "wsbcn://resnet50_gn_ws"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_ws_gn_1x"
