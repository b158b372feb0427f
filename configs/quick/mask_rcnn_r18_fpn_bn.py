"""The quick job with Batch Normalization: what one image per process does to it."""

from wsbcn_d2.modeling import use_norm

from ..common.quick import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "BN")
# What the comparison shows: BN on one image a process.
train.silence = ["one-image-a-process"]
train.output_dir = "./output/quick/mask_rcnn_r18_fpn_bn"
