"""Mask R-CNN R-101-FPN, BCN+WS, mmdetection's 20-23-24e.

No COCO code was released: schedule and decay are those of the GN+WS rows; docs/norms.md has
the rest.
"""

from .mask_rcnn_r50_fpn_ws_bcn_20_23_24e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_bcn_ws"
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_ws_bcn_20_23_24e"
