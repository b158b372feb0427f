"""ResNet-101 with SN at (8, 32). arXiv:1907.10473, Section 4.1.3: 78.6 top-1."""

from wsbcn_d2.modeling import use_norm

from ..common.sn_imagenet import dataloader, lr_multiplier, model, optimizer, train, use_setting

model.backbone.stages.depth = 101
use_norm(model, "SN")
use_setting(gpus=8, images_per_gpu=32, batch_average=True)
train.output_dir = "./output/classification/imagenet/resnet101_sn_8x32"
