"""Faster R-CNN R-50-FPN, FrozenBN in the backbone, SN in FPN and heads, 1x.

Published: 38.0 box AP (SN paper, Table V).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_1x as lr_multiplier
from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "FrozenBN", "SN")
train.pretrained = "wsbcn://resnet50_bn"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_frozenbn_sn_1x"
