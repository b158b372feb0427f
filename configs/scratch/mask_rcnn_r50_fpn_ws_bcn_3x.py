"""Mask R-CNN R-50-FPN, BCN+WS, from random weights, detectron2's 3x."""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn_scratch import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "BCN", standardize=True)
model.ws_eps_mode = "inside"  # as the release of BCN standardizes
train.output_dir = "./output/scratch/mask_rcnn_r50_fpn_ws_bcn_3x"
