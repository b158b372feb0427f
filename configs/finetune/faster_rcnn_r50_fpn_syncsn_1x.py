"""Faster R-CNN R-50-FPN, SyncSN, 1x.

Batch statistics over all processes, 16 images. Starts from weights of SN, which has the same
parameters, trained with 32: the nearest.
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_1x as lr_multiplier
from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "SyncSN")
train.pretrained = "wsbcn://resnet50_sn_8x32"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_syncsn_1x"
