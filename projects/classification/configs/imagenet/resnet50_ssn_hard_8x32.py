"""ResNet-50 from scratch with one statistic a layer, that of a snapshot of `resnet50_sn_8x32`.

arXiv:1907.10473, Table III: 76.5, 76.1, 76.2 top-1 for the ratios of epochs 30, 60, 90.
`tools/harden.py --ratios-only` makes ``train.init_checkpoint`` of the snapshot.
"""

from wsbcn_d2.modeling import use_norm

from ..common.sn_imagenet import dataloader, lr_multiplier, model, optimizer, train, use_setting

use_norm(model, "SSN")
use_setting(gpus=8, images_per_gpu=32, batch_average=True)
train.output_dir = "./output/classification/imagenet/resnet50_ssn_hard_8x32"
