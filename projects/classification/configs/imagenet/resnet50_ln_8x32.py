"""LN at (8, 32). arXiv:1907.10473, Section 4.1.3: 74.7 top-1."""

from wsbcn_d2.modeling import use_norm

from ..common.sn_imagenet import dataloader, lr_multiplier, model, optimizer, train, use_setting

use_norm(model, "LN_CHW")
use_setting(gpus=8, images_per_gpu=32)
train.output_dir = "./output/classification/imagenet/resnet50_ln_8x32"
