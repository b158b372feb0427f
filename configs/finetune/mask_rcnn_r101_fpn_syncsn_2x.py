"""Mask R-CNN R-101-FPN, SyncSN, Detectron's 2x."""

from .mask_rcnn_r50_fpn_syncsn_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_sn_8x32"
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_syncsn_2x"
