"""Mask R-CNN R-50-FPN, GN+WS, 3x, from random weights: all layers train."""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_3x as lr_multiplier
from ..common.coco_schedule import max_iter_3x
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import optimizer
from ..common.train import train

use_norm(model, "GN", standardize=True)
model.backbone.bottom_up.freeze_at = 0
train.max_iter = max_iter_3x
train.output_dir = "./output/scratch/mask_rcnn_r50_fpn_ws_gn_3x"
