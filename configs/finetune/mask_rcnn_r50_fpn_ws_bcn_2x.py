"""Mask R-CNN R-50-FPN, BCN+WS, mmdetection's 2x."""

from wsbcn_d2.modeling import use_norm

from ..common.coco_schedule import lr_multiplier_24e as lr_multiplier
from ..common.coco_schedule import max_iter_24e
from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train

use_norm(model, "BCN", standardize=True)
model.ws_eps_mode = "inside"  # as the release of BCN standardizes
train.max_iter = max_iter_24e
train.pretrained = "wsbcn://resnet50_bcn_ws"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_bcn_2x"
