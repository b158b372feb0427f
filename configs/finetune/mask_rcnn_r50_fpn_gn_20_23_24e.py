"""Mask R-CNN R-50-FPN, GN, 20-23-24e."""

from ..common.coco_schedule import lr_multiplier_20_23_24e as lr_multiplier
from .mask_rcnn_r50_fpn_gn_2x import dataloader, model, optimizer, train

train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_20_23_24e"
