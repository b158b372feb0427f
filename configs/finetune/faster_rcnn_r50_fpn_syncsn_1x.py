"""Faster R-CNN R-50-FPN, SyncSN, 1x.

Batch statistics over all processes. Starts from the weights of SN: the same parameters.
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_1x as lr_multiplier
from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "SyncSN")
train.init_checkpoint = "weights/resnet50_sn.pth"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_syncsn_1x"
