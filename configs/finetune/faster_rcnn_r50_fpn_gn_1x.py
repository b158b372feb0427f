"""Faster R-CNN R-50-FPN, GN, mmdetection's 1x."""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_12e as lr_multiplier
from ..common.coco_schedule import max_iter_12e
from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "GN")
train.max_iter = max_iter_12e
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_gn_1x"
