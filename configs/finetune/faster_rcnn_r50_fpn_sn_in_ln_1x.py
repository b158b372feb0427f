"""Faster R-CNN R-50-FPN, SN without its batch statistic, 1x.

For one image a process; the SN paper's (8, 1).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_1x as lr_multiplier
from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "SN_IN_LN")
train.pretrained = "wsbcn://resnet50_sn_in_ln_8x1"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_sn_in_ln_1x"
