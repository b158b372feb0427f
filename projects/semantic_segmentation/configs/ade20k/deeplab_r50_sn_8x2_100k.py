"""DeepLab with SN on ADE20K, from SN (8, 2).

arXiv:1907.10473, Table VII: 38.7 mIoU at one scale, 39.2 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.ade20k import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SN")
train.pretrained = "wsbcn://resnet50_sn_8x2"
train.output_dir = "./output/semantic_segmentation/ade20k/deeplab_r50_sn_8x2_100k"
