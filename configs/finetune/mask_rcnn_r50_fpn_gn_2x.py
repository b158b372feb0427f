"""Mask R-CNN R-50-FPN, GN, mmdetection's 2x.

Published: 40.2 box AP, 36.4 mask AP (mmdetection's GN table).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_24e as lr_multiplier
from ..common.coco_schedule import max_iter_24e
from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "GN")
train.max_iter = max_iter_24e
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_2x"
