"""Mask R-CNN R-50-FPN, GN+WS, mmdetection's 2x.

Published: 40.6 box AP, 36.6 mask AP (mmdetection's GN+WS table).
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.mmdetection import follow

use_norm(model, "GN", standardize=True)
lr_multiplier = follow(optimizer, train, "24e")
train.pretrained = "wsbcn://resnet50_gn_ws"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_gn_2x"
