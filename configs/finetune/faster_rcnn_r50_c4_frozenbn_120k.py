"""Faster R-CNN R-50-C4, FrozenBN in backbone and conv5, 120k iterations at 4 x 3 images.

Published: 29.6 box AP (SN paper, Table IV).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_c4 import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "FrozenBN")
train.pretrained = "wsbcn://resnet50_bn"
train.output_dir = "./output/finetune/faster_rcnn_r50_c4_frozenbn_120k"
