"""BN at (8, 8). arXiv:1907.10473, Table II: 75.2 top-1."""

from wsbcn_d2.modeling import use_norm

from ..common.sn_imagenet import dataloader, lr_multiplier, model, optimizer, train, use_setting

use_norm(model, "BN")
use_setting(gpus=8, images_per_gpu=8)
train.output_dir = "./output/classification/imagenet/resnet50_bn_8x8"
