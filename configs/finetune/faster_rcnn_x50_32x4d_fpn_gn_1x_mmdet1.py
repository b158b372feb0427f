"""Faster R-CNN X-50-32x4d-FPN, GN, mmdetection's 1x as of its version 1.

ResNeXt with GN falls far behind: users doubted its weights, mmdetection its group count.
Published: 36.5 box AP (mmdetection's pull request 521).
"""

from ..common.protocols.mmdetection1 import follow
from .faster_rcnn_x50_32x4d_fpn_gn_1x import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "12e")
train.output_dir = "./output/finetune/faster_rcnn_x50_32x4d_fpn_gn_1x_mmdet1"
