"""Faster R-CNN R-50-C4, SN in backbone and conv5, SwitchNorm_Detection's 2x.

All layers train. From weights trained with 32 images a GPU, as published.
Published: 38.07 box AP (SwitchNorm_Detection).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_c4 import dataloader, model, optimizer, train
from ..common.protocols.switchnorm_detection import follow, switch_norm

use_norm(model, switch_norm())
model.backbone.freeze_at = 0
model.roi_heads.batch_size_per_image = 256
lr_multiplier = follow(model, optimizer, train, "2x")
train.pretrained = "wsbcn://resnet50_sn_8x32"
# As published.
train.silence = ["pretraining-minibatch"]
train.output_dir = "./output/finetune/faster_rcnn_r50_c4_sn_2x"
