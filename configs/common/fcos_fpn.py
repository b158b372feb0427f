"""Finetuning FCOS R-50-FPN on COCO, 1x, as detectron2's own recipe but for `from_zoo`."""

from .models.zoo import from_zoo
from .retinanet_fpn import dataloader, lr_multiplier, optimizer, train

model = from_zoo("fcos")
model.backbone.bottom_up.freeze_at = 2
