"""Mask R-CNN R-50-FPN, SN without its batch statistic, 2x.

For one image a process; the SN paper's (8, 1).
Published: 41.0 box AP, 36.1 mask AP (SwitchNorm_Detection).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_2x as lr_multiplier
from ..common.coco_schedule import max_iter_2x
from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "SN_IN_LN")
train.max_iter = max_iter_2x
train.pretrained = "wsbcn://resnet50_sn_in_ln_8x1"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_sn_in_ln_2x"
