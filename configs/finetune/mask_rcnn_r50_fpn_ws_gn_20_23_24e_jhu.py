"""Mask R-CNN R-50-FPN, GN+WS, the WS release's 20-23-24e.

Its own batch is not in the documents at hand: 16 images, as maskrcnn-benchmark's.
So is its schedule: the paper's, by mmdetection's note.
Published: 40.81 box AP, 36.51 mask AP (the WS release).
"""

from ..common.protocols.maskrcnn_benchmark import follow
from .mask_rcnn_r50_fpn_ws_gn_20_23_24e import dataloader, model, optimizer, train

lr_multiplier = follow(model, optimizer, train, "20_23_24e")
train.pretrained = "wsbcn://resnet50_gn_ws_jhu"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_gn_20_23_24e_jhu"
