"""DeepLab with SyncSN on ADE20K, from SN (8, 2).

arXiv:1907.10473, Table VII: 39.0 mIoU at one scale, 39.3 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.ade20k import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SyncSN")
train.pretrained = "wsbcn://resnet50_sn_8x2"
train.output_dir = "./output/semantic_segmentation/ade20k/deeplab_r50_syncsn_8x2_100k"
