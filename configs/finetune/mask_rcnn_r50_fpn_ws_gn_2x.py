"""Mask R-CNN R-50-FPN, GN+WS, mmdetection's 2x.

Published: 40.6 box AP, 36.6 mask AP (mmdetection's GN+WS table).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_24e as lr_multiplier
from ..common.coco_schedule import max_iter_24e
from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "GN", standardize=True)
train.max_iter = max_iter_24e
train.pretrained = "wsbcn://resnet50_gn_ws"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_gn_2x"
