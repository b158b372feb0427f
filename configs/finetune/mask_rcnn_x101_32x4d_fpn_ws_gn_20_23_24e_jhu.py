"""Mask R-CNN X-101-32x4d-FPN, GN+WS, the WS release's 20-23-24e.

One image on each of 4 GPUs: a micro-batch row itself.
Its own schedule is not in the documents at hand: the paper's, by mmdetection's note.
Published: 43.12 box AP, 38.34 mask AP (the WS release).
"""

from ..common.protocols.maskrcnn_benchmark import follow
from .mask_rcnn_x101_32x4d_fpn_ws_gn_20_23_24e import dataloader, model, optimizer, train

dataloader.train.total_batch_size = train.scale_lr.reference_batch_size = 4
optimizer.lr = 0.005
lr_multiplier = follow(model, optimizer, train, "20_23_24e", total_batch_size=4)
train.pretrained = "wsbcn://resnext101_32x4d_gn_ws_jhu"
train.output_dir = "./output/finetune/mask_rcnn_x101_32x4d_fpn_ws_gn_20_23_24e_jhu"
