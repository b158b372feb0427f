"""Mask R-CNN R-50-FPN, GN+WS, 2x, from ImageNet weights trained with GN+WS.

Target: 40.6 box AP, 36.6 mask AP (mmdetection's GN+WS table; not our result). Set
`train.init_checkpoint` to a GN+WS ResNet-50: weights trained without WS are other features here.
"""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_2x as lr_multiplier
from ..common.coco_schedule import max_iter_2x
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import optimizer
from ..common.train import train

use_norm(model, "GN", standardize=True)
model.backbone.bottom_up.freeze_at = 2  # the stem and res2, as the baselines do
train.max_iter = max_iter_2x
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_gn_2x"
