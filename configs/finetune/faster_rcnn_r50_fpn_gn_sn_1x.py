"""Faster R-CNN R-50-FPN, GN in the backbone, SN in FPN and heads, 1x.

The SN paper has this pair for Mask R-CNN only (Table VI).
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_1x as lr_multiplier
from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "GN", "SN")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_gn_sn_1x"
