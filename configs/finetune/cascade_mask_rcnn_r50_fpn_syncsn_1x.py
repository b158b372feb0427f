"""Cascade Mask R-CNN R-50-FPN, SyncSN, 1x."""

from wsbcn_d2.modeling import use_norm

from ..common.cascade_mask_rcnn_fpn import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SyncSN")
train.pretrained = "wsbcn://resnet50_sn_8x32"
train.output_dir = "./output/finetune/cascade_mask_rcnn_r50_fpn_syncsn_1x"
