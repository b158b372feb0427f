"""Mask R-CNN R-50-FPN, BCN+WS, finetuned on small data."""

from ..common.small import follow
from .mask_rcnn_r50_fpn_ws_bcn_scratch import dataloader, model, optimizer, train

model.backbone.bottom_up.freeze_at = 2
lr_multiplier = follow(train, epochs=12, min_iter=1200)
train.pretrained = "wsbcn://resnet50_bcn_ws"
train.output_dir = "./output/small/mask_rcnn_r50_fpn_ws_bcn_finetune"
