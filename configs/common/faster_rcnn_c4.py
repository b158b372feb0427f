"""The job of Table IV of the SN paper: Faster R-CNN R-50-C4, 3 images on each of 4 GPUs.

80k iterations at a learning rate of 0.01, then 40k at 0.001; the warm-up is ours.
"""

from .coco_schedule import multiplier
from .data.coco_600 import dataloader
from .models.faster_rcnn_c4 import model
from .optim import optimizer
from .train import train

dataloader.train.total_batch_size = 12
dataloader.train.mapper.use_instance_mask = False
model.backbone.freeze_at = 2
optimizer.lr = 0.01
train.max_iter = 120_000
train.scale_lr.reference_batch_size = 12
lr_multiplier = multiplier(train.max_iter, drops=[80_000])
