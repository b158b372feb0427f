"""Mask R-CNN R-50-FPN, FrozenBN in the backbone, GN in FPN and heads, 2x.

Published: 39.5 box AP, 34.4 mask AP (SN paper, Table VI).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_2x as lr_multiplier
from ..common.coco_schedule import max_iter_2x
from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "FrozenBN", "GN")
train.max_iter = max_iter_2x
train.pretrained = "wsbcn://resnet50_bn"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_frozenbn_gn_2x"
