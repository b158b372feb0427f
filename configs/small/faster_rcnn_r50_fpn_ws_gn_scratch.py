"""Faster R-CNN R-50-FPN, GN+WS, from random weights, on small data."""

from wsbcn_d2.modeling import use_norm

from ..common.small import follow, small

dataloader, model, optimizer, train = small("faster", 50)
use_norm(model, "GN", standardize=True)
lr_multiplier = follow(train, epochs=24, min_iter=2400)
train.output_dir = "./output/small/faster_rcnn_r50_fpn_ws_gn_scratch"
