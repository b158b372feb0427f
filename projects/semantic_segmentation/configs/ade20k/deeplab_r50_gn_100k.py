"""DeepLab with GN on ADE20K.

arXiv:1907.10473, Table VII: 35.7 mIoU at one scale, 36.3 at several.
"""

from wsbcn_d2.modeling import use_norm

from ..common.ade20k import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "GN")
train.pretrained = "wsbcn://resnet50_gn"
train.output_dir = "./output/semantic_segmentation/ade20k/deeplab_r50_gn_100k"
