"""DeepLab with SN on Cityscapes, from SN (8, 4).

arXiv:1907.10473, Table VII: 72.1 mIoU at one scale, 75.8 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.cityscapes import dataloader, lr_multiplier, optimizer, train
from ..common.cityscapes import deeplab as model

use_norm(model, "SN")
train.pretrained = "wsbcn://resnet50_sn_8x4"
train.output_dir = "./output/semantic_segmentation/cityscapes/deeplab_r50_sn_8x4_90k"
