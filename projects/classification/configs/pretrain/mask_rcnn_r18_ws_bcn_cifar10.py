"""The backbone of configs/quick, pretrained on CIFAR-10 enlarged to 64 pixels, with BCN and WS.

To be started from: ``train.init_checkpoint=….pth`` of configs/quick/mask_rcnn_r18_fpn_ws_bcn.
"""

from wsbcn_d2.modeling import use_norm

from ..common.cifar10_64 import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "BCN", standardize=True)
train.output_dir = "./output/classification/pretrain/mask_rcnn_r18_ws_bcn_cifar10"
