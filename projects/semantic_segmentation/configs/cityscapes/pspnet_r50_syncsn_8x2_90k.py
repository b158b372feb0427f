"""PSPNet with SyncSN on Cityscapes, from SN (8, 2).

arXiv:1907.10473, Table VIII: 76.0 mIoU at one scale, 76.6 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.cityscapes import dataloader, lr_multiplier, optimizer, train
from ..common.cityscapes import psp as model

use_norm(model, "SyncSN")
train.pretrained = "wsbcn://resnet50_sn_8x2"
train.output_dir = "./output/semantic_segmentation/cityscapes/pspnet_r50_syncsn_8x2_90k"
