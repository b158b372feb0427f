"""Faster R-CNN R-50-FPN, GN, mmdetection's 1x."""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.mmdetection import follow

use_norm(model, "GN")
lr_multiplier = follow(optimizer, train, "12e")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_gn_1x"
