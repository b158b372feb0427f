"""Mask R-CNN R-50-FPN, SN without its batch statistic, SwitchNorm_Detection's 2x.

For one image a process; the SN paper's (8, 1).
Published: 41.01 box AP, 36.12 mask AP (SwitchNorm_Detection).
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.norms import released
from ..common.protocols.switchnorm_detection import follow

use_norm(model, released("SN_IN_LN"))
lr_multiplier = follow(model, optimizer, train, "2x")
train.pretrained = "wsbcn://resnet50_sn_in_ln_8x1"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_sn_in_ln_2x"
