"""DeepLab with SyncSN on Cityscapes, from SN (8, 32).

arXiv:1907.10473, Table VII: 76.7 mIoU at one scale, 77.5 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.cityscapes import dataloader, lr_multiplier, optimizer, train
from ..common.cityscapes import deeplab as model

use_norm(model, "SyncSN")
train.pretrained = "wsbcn://resnet50_sn_8x32"
train.output_dir = "./output/semantic_segmentation/cityscapes/deeplab_r50_syncsn_8x32_90k"
