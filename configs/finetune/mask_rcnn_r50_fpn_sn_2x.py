"""Mask R-CNN R-50-FPN, SN, 2x.

Two images a process or more: with one, the batch statistic is the instance's in training only.
Published: 41.0 box AP, 36.5 mask AP (SN paper, Table VI: SN, SN).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_2x as lr_multiplier
from ..common.coco_schedule import max_iter_2x
from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "SN")
train.max_iter = max_iter_2x
train.pretrained = "wsbcn://resnet50_sn_8x2"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_sn_2x"
