"""Faster R-CNN R-50-FPN, GN in the backbone, SN in FPN and heads, Detectron's 1x.

The SN paper has this pair for Mask R-CNN only (Table VI).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.detectron1 import follow

use_norm(model, "GN", "SN")
lr_multiplier = follow(model, optimizer, train, "1x")
train.batch_average_iters = 200
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_gn_sn_1x"
