"""Mask R-CNN R-50-FPN, SyncBN, from random weights, detectron2's 3x."""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn_scratch import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SyncBN", "naiveSyncBN")
train.output_dir = "./output/scratch/mask_rcnn_r50_fpn_syncbn_3x"
