"""Faster R-CNN R-50-C4, SN in backbone and conv5, 120k iterations at 4 x 3 images.

Published: 33.0 box AP (SN paper, Table IV).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_c4 import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SN")
train.pretrained = "wsbcn://resnet50_sn_8x2"
train.output_dir = "./output/finetune/faster_rcnn_r50_c4_sn_120k"
