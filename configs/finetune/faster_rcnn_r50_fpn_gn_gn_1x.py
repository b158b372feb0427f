"""Faster R-CNN R-50-FPN, GN in backbone, FPN and heads, Detectron's 1x.

Published: 38.2 box AP (SN paper, Table V).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.detectron1 import follow

use_norm(model, "GN")
lr_multiplier = follow(model, optimizer, train, "1x")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_gn_gn_1x"
