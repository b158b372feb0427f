"""Faster R-CNN R-50-C4, GN in backbone and conv5, SwitchNorm_Detection's 2x.

Published: 37.3 box AP (SwitchNorm_Detection, its GN).
"""

from wsbcn_d2.modeling import use_norm

from .faster_rcnn_r50_c4_sn_2x import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "GN")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/faster_rcnn_r50_c4_gn_2x"
