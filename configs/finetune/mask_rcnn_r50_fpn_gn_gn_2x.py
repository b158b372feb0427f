"""Mask R-CNN R-50-FPN, GN in backbone, FPN and heads, Detectron's 2x.

Published: 40.2 box AP, 35.7 mask AP (SN paper, Table VI).
Published: 40.4 box AP, 35.6 mask AP (SwitchNorm_Detection, its GN).
Published: 40.3 box AP, 35.7 mask AP (Detectron's GN).
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.detectron1 import follow

use_norm(model, "GN")
lr_multiplier = follow(model, optimizer, train, "2x")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_gn_gn_2x"
