"""GN at (1, 8). arXiv:1907.10473, Table II: 75.5 top-1."""

from wsbcn_d2.modeling import use_norm

from ..common.sn_imagenet import dataloader, lr_multiplier, model, optimizer, train, use_setting

use_norm(model, "GN")
use_setting(gpus=1, images_per_gpu=8)
train.output_dir = "./output/classification/imagenet/resnet50_gn_1x8"
