"""DeepLab with SN on ADE20K, from SN (8, 4).

arXiv:1907.10473, Table VII: 38.6 mIoU at one scale, 39.0 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.ade20k import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SN")
train.pretrained = "wsbcn://resnet50_sn_8x4"
train.output_dir = "./output/semantic_segmentation/ade20k/deeplab_r50_sn_8x4_100k"
