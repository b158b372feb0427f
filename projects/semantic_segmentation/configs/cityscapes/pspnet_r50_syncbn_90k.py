"""PSPNet with SyncBN on Cityscapes.

arXiv:1907.10473, Table VIII: 76.3 mIoU at one scale, 76.9 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.cityscapes import dataloader, lr_multiplier, optimizer, train
from ..common.cityscapes import psp as model

use_norm(model, "SyncBN")
train.pretrained = "wsbcn://resnet50_bn"
train.output_dir = "./output/semantic_segmentation/cityscapes/pspnet_r50_syncbn_90k"
