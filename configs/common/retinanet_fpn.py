"""Finetuning RetinaNet R-50-FPN on COCO, 1x, as detectron2's own recipe but for `from_zoo`."""

from .coco_schedule import lr_multiplier_1x as lr_multiplier
from .data.coco import dataloader
from .models.zoo import from_zoo
from .optim import optimizer
from .train import train

dataloader.train.mapper.use_instance_mask = False
model = from_zoo("retinanet")
model.backbone.bottom_up.freeze_at = 2
optimizer.lr = 0.01
