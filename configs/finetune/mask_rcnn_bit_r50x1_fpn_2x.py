"""Mask R-CNN BiT-R50x1-FPN, GN+WS: this project's choice, no table has it.

The backbone is the GN+WS network that is used most, pretrained on ImageNet-21k; the protocol is
mmdetection's for GN+WS, so that the two backbones compare.
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.models.resnetv2 import use_resnetv2
from ..common.protocols.mmdetection import follow

use_resnetv2(model, depth=50)
use_norm(model, "GN", standardize=True)
lr_multiplier = follow(optimizer, train, "24e")
train.pretrained = "wsbcn://resnetv2_50x1_bit_in21k"
train.output_dir = "./output/finetune/mask_rcnn_bit_r50x1_fpn_2x"
