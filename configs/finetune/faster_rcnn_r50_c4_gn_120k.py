"""Faster R-CNN R-50-C4, GN in backbone and conv5, 120k iterations at 4 x 3 images.

Stem and stride are those of its weights, not the release's.
Published: 32.7 box AP (SN paper, Table IV).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_c4_600 import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "GN")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/finetune/faster_rcnn_r50_c4_gn_120k"
