"""Faster R-CNN R-101-FPN, BCN+WS, mmdetection's 1x.

No COCO code was released: schedule and decay are those of the GN+WS rows; docs/norms.md has
the rest.
"""

from .faster_rcnn_r50_fpn_ws_bcn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_bcn_ws"
train.output_dir = "./output/finetune/faster_rcnn_r101_fpn_ws_bcn_1x"
