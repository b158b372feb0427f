"""Mask R-CNN R-50-FPN, SN, from random weights, 3x."""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn_scratch import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SN")
train.output_dir = "./output/scratch/mask_rcnn_r50_fpn_sn_3x"
