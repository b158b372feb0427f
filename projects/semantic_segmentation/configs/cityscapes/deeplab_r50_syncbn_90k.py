"""DeepLab with SyncBN on Cityscapes.

arXiv:1907.10473, Table VII: 69.7 mIoU at one scale, 73.0 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.cityscapes import dataloader, lr_multiplier, optimizer, train
from ..common.cityscapes import deeplab as model

use_norm(model, "SyncBN")
train.pretrained = "wsbcn://resnet50_bn"
train.output_dir = "./output/semantic_segmentation/cityscapes/deeplab_r50_syncbn_90k"
