"""Finetuning Cascade Mask R-CNN R-50-FPN on COCO, 1x: three box heads at rising IoU."""

from .coco_schedule import lr_multiplier_1x as lr_multiplier
from .data.coco import dataloader
from .models.zoo import from_zoo
from .optim import optimizer
from .train import train

model = from_zoo("cascade_rcnn")
model.backbone.bottom_up.freeze_at = 2
model.proposal_generator.post_nms_topk = (2000, 1000)  # as in detectron2's yaml recipe
