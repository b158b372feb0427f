"""Faster R-CNN R-50-FPN, SN, box head of two layers, SwitchNorm_Detection's 2x.

Published: 39.1 box AP (SwitchNorm_Detection).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train
from ..common.models.zoo import two_layer_box_head
from ..common.protocols.switchnorm_detection import follow, switch_norm

two_layer_box_head(model)
use_norm(model, switch_norm())
lr_multiplier = follow(model, optimizer, train, "2x")
train.pretrained = "wsbcn://resnet50_sn_8x2"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_sn_2x"
