"""Mask R-CNN X-50-32x4d-FPN, GN, mmdetection's 2x as of its version 1.

ResNeXt with GN falls far behind: users doubted its weights, mmdetection its group count.
Published: 39.2 box AP, 35.5 mask AP (mmdetection's pull request 521).
"""

from ..common.protocols.mmdetection1 import follow
from .mask_rcnn_x50_32x4d_fpn_gn_2x import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "24e")
train.output_dir = "./output/finetune/mask_rcnn_x50_32x4d_fpn_gn_2x_mmdet1"
