"""Mask R-CNN R-18-FPN, GN+WS, from random weights, on small data."""

from wsbcn_d2.modeling import use_norm

from ..common.small import follow, small

dataloader, model, optimizer, train = small("mask", 18)
use_norm(model, "GN", standardize=True)
lr_multiplier = follow(train, epochs=10, min_iter=2000)
train.output_dir = "./output/small/mask_rcnn_r18_fpn_ws_gn_scratch"
