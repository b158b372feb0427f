"""Faster R-CNN X-101-32x4d-FPN, GN, mmdetection's 1x."""

from ..common.models.zoo import resnext_stages
from .faster_rcnn_r50_fpn_gn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = resnext_stages(101, norm="GN")
train.pretrained = "wsbcn://resnext101_32x4d_gn"
train.output_dir = "./output/finetune/faster_rcnn_x101_32x4d_fpn_gn_1x"
