"""Mask R-CNN R-50-FPN, GN, mmdetection's 20-23-24e."""

from ..common.protocols.mmdetection import follow
from .mask_rcnn_r50_fpn_gn_2x import dataloader, model, optimizer, train

lr_multiplier = follow(optimizer, train, "20_23_24e")
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_20_23_24e"
