"""Faster R-CNN R-50-FPN, SN without its batch statistic, SwitchNorm_Detection's 2x.

Box head of two layers. For one image a process.
Published: 38.99 box AP (SwitchNorm_Detection).
"""

from wsbcn_d2.modeling import use_norm

from ..common.norms import released
from .faster_rcnn_r50_fpn_sn_2x import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, released("SN_IN_LN"))
train.pretrained = "wsbcn://resnet50_sn_in_ln_8x1"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_sn_in_ln_2x"
