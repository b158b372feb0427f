"""Faster R-CNN R-50-FPN, SN, 1x.

Two images a process or more: with one, the batch statistic is the instance's in training only.
Published: 39.3 box AP (SN paper, Table V: SN, SN).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_1x as lr_multiplier
from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "SN")
train.pretrained = "wsbcn://resnet50_sn_8x2"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_sn_1x"
