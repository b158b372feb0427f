"""Faster R-CNN R-50-C4, SN in backbone and conv5, 120k iterations at 4 x 3 images.

Stem and stride are those of its weights, not the release's.
Published: 33.0 box AP (SN paper, Table IV).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_c4_600 import dataloader, lr_multiplier, model, optimizer, train
from ..common.norms import released

use_norm(model, released("SN"))
train.batch_average_iters = 200
train.pretrained = "wsbcn://resnet50_sn_8x2"
train.output_dir = "./output/finetune/faster_rcnn_r50_c4_sn_120k"
