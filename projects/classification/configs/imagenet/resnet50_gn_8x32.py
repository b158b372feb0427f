"""GN at (8, 32). arXiv:1907.10473, Table II: 75.9 top-1."""

from wsbcn_d2.modeling import use_norm

from ..common.sn_imagenet import dataloader, lr_multiplier, model, optimizer, train, use_setting

use_norm(model, "GN")
use_setting(gpus=8, images_per_gpu=32)
train.output_dir = "./output/classification/imagenet/resnet50_gn_8x32"
