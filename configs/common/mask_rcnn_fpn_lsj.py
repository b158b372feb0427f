"""Mask R-CNN R-50-FPN from random weights, 100 epochs with large-scale jitter.

detectron2's new baseline (64 images a step, learning rate 0.1, mixed precision, two convolutions in
the RPN) at any number of images per process: with 1 or 2 where its SyncBN needs 8.
"""

from detectron2 import model_zoo

from .models.mask_rcnn_fpn import model
from .train import train

# Its dataloader comes with the jitter, its optimizer with the weight decay of 4e-5.
_baseline = model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")
dataloader = _baseline.dataloader
lr_multiplier = _baseline.lr_multiplier
optimizer = _baseline.optimizer

dataloader.train.mapper.image_format = "RGB"
model.backbone.bottom_up.freeze_at = 0
model.proposal_generator.head.conv_dims = [-1, -1]
train.protocol = "detectron2"
train.max_iter = _baseline.train.max_iter
train.scale_lr.reference_batch_size = 64
train.amp.enabled = True
train.ddp.fp16_compression = True
