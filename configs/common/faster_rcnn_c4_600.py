"""Table IV of the SN paper: Faster R-CNN R-50-C4, 12 images a step, the short side 600 pixels."""

from .data.coco_600 import dataloader
from .models.faster_rcnn_c4 import model
from .optim import optimizer
from .protocols.faster_rcnn_pytorch import follow
from .train import train

dataloader.train.total_batch_size = 12
dataloader.train.mapper.use_instance_mask = False
model.backbone.freeze_at = 2
lr_multiplier = follow(model, optimizer, train)
