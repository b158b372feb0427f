"""DeepLab with SN on ADE20K, from SN (8, 32).

arXiv:1907.10473, Table VII: 37.7 mIoU at one scale, 38.4 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.ade20k import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SN")
train.pretrained = "wsbcn://resnet50_sn_8x32"
train.output_dir = "./output/semantic_segmentation/ade20k/deeplab_r50_sn_8x32_100k"
