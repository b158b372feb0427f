"""SN at (1, 32). arXiv:1907.10473, Table II: 76.6 top-1."""

from wsbcn_d2.modeling import use_norm

from ..common.sn_imagenet import dataloader, lr_multiplier, model, optimizer, train, use_setting

use_norm(model, "SN")
use_setting(gpus=1, images_per_gpu=32, batch_average=True)
train.output_dir = "./output/classification/imagenet/resnet50_sn_1x32"
