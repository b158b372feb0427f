"""Mask R-CNN R-101-FPN, GN, mmdetection's 20-23-24e."""

from .mask_rcnn_r50_fpn_gn_20_23_24e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_gn"
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_gn_20_23_24e"
