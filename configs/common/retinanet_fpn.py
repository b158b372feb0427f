"""Finetuning RetinaNet R-50-FPN on COCO, 1x, as detectron2's own recipe but for `from_zoo`."""

from .data.coco import dataloader
from .models.zoo import from_zoo
from .optim import optimizer
from .protocols.detectron2 import follow
from .train import train

dataloader.train.mapper.use_instance_mask = False
model = from_zoo("retinanet")
model.backbone.bottom_up.freeze_at = 2
optimizer.lr = 0.01
lr_multiplier = follow(train, "1x")
