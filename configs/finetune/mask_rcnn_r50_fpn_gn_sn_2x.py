"""Mask R-CNN R-50-FPN, GN in the backbone, SN in FPN and heads, Detectron's 2x.

Published: 40.4 box AP, 36.0 mask AP (SN paper, Table VI).
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.detectron1 import follow

use_norm(model, "GN", "SN")
lr_multiplier = follow(model, optimizer, train, "2x")
train.batch_average_iters = 200
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_sn_2x"
