"""Faster R-CNN X-50-32x4d-FPN, GN+WS, the WS release's 1x.

Its own batch is not in the documents at hand: 16 images, as maskrcnn-benchmark's.
Published: 40.25 box AP (the WS release).
"""

from ..common.protocols.maskrcnn_benchmark import follow
from .faster_rcnn_x50_32x4d_fpn_ws_gn_1x import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "1x")
train.pretrained = "wsbcn://resnext50_32x4d_gn_ws_jhu"
train.output_dir = "./output/finetune/faster_rcnn_x50_32x4d_fpn_ws_gn_1x_jhu"
