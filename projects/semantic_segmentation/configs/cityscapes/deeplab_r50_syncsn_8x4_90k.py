"""DeepLab with SyncSN on Cityscapes, from SN (8, 4).

arXiv:1907.10473, Table VII: 75.8 mIoU at one scale, 77.0 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.cityscapes import dataloader, lr_multiplier, optimizer, train
from ..common.cityscapes import deeplab as model

use_norm(model, "SyncSN")
train.pretrained = "wsbcn://resnet50_sn_8x4"
train.output_dir = "./output/semantic_segmentation/cityscapes/deeplab_r50_syncsn_8x4_90k"
