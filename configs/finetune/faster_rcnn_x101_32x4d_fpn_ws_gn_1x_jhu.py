"""Faster R-CNN X-101-32x4d-FPN, GN+WS, the WS release's 1x.

One image on each of 4 GPUs: a micro-batch row itself.
Published: 41.9 box AP (the WS release).
"""

from ..common.protocols.maskrcnn_benchmark import follow
from .faster_rcnn_x101_32x4d_fpn_ws_gn_1x import dataloader, model, optimizer, train

dataloader.train.total_batch_size = train.scale_lr.reference_batch_size = 4
optimizer.lr = 0.005
lr_multiplier = follow(model, optimizer, train, "1x", total_batch_size=4)
train.pretrained = "wsbcn://resnext101_32x4d_gn_ws_jhu"
train.output_dir = "./output/finetune/faster_rcnn_x101_32x4d_fpn_ws_gn_1x_jhu"
