"""Mask R-CNN R-50-FPN, SN, from random weights, SwitchNorm_Detection's 3x.

At one scale; all layers train.
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.switchnorm_detection import follow, switch_norm

use_norm(model, switch_norm())
model.backbone.bottom_up.freeze_at = 0
lr_multiplier = follow(model, optimizer, train, "3x")
train.output_dir = "./output/scratch/mask_rcnn_r50_fpn_sn_3x"
