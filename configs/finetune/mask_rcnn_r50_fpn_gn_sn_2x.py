"""Mask R-CNN R-50-FPN, GN in the backbone, SN in FPN and heads, 2x.

Published: 40.4 box AP, 36.0 mask AP (SN paper, Table VI).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_2x as lr_multiplier
from ..common.coco_schedule import max_iter_2x
from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "GN", "SN")
train.max_iter = max_iter_2x
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_sn_2x"
