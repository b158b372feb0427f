"""Mask R-CNN X-101-32x4d-FPN, GN, mmdetection's 20-23-24e."""

from ..common.models.zoo import resnext_stages
from .mask_rcnn_r50_fpn_gn_20_23_24e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = resnext_stages(101, norm="GN")
train.pretrained = "wsbcn://resnext101_32x4d_gn"
train.output_dir = "./output/finetune/mask_rcnn_x101_32x4d_fpn_gn_20_23_24e"
