"""Mask R-CNN R-50-FPN, BCN+WS, from random weights, on small data."""

from wsbcn_d2.modeling import use_norm

from ..common.small import follow, small

dataloader, model, optimizer, train = small("mask", 50)
use_norm(model, "BCN", standardize=True)
model.ws_eps_mode = "inside"  # as the release of BCN standardizes
lr_multiplier = follow(train, epochs=24, min_iter=2400)
train.output_dir = "./output/small/mask_rcnn_r50_fpn_ws_bcn_scratch"
