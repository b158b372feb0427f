"""Finetuning Cascade Mask R-CNN R-50-FPN on COCO, 1x: three box heads at rising IoU."""

from .data.coco import dataloader
from .models.zoo import from_zoo
from .optim import optimizer
from .protocols.detectron2 import follow
from .train import train

model = from_zoo("cascade_rcnn")
model.backbone.bottom_up.freeze_at = 2
model.proposal_generator.post_nms_topk = (2000, 1000)  # as in detectron2's yaml recipe
lr_multiplier = follow(train, "1x")
