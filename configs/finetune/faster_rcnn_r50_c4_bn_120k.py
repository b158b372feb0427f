"""Faster R-CNN R-50-C4, BN in backbone and conv5, 120k iterations at 4 x 3 images.

Published: 19.3 box AP (SN paper, Table IV).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_c4 import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "BN")
train.pretrained = "wsbcn://resnet50_bn"
# What the paper's row shows: BN finetuned on 3 images a GPU.
train.silence = ["pretraining-minibatch"]
train.output_dir = "./output/finetune/faster_rcnn_r50_c4_bn_120k"
