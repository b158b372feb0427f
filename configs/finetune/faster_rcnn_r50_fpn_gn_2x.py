"""Faster R-CNN R-50-FPN, GN, box head of two layers, SwitchNorm_Detection's 2x.

Published: 38.3 box AP (SwitchNorm_Detection, its GN).
"""

from wsbcn_d2.modeling import use_norm

from .faster_rcnn_r50_fpn_sn_2x import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "GN")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_gn_2x"
