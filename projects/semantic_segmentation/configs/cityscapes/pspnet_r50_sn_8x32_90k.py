"""PSPNet with SN on Cityscapes, from SN (8, 32).

arXiv:1907.10473, Table VIII: 76.2 mIoU at one scale, 77.3 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.cityscapes import dataloader, lr_multiplier, optimizer, train
from ..common.cityscapes import psp as model

use_norm(model, "SN")
train.pretrained = "wsbcn://resnet50_sn_8x32"
train.output_dir = "./output/semantic_segmentation/cityscapes/pspnet_r50_sn_8x32_90k"
