"""Mask R-CNN R-50-FPN, SyncSN, from random weights, 100 epochs with large-scale jitter."""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn_lsj import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SyncSN")
train.batch_average_iters = 200
train.output_dir = "./output/scratch/mask_rcnn_r50_fpn_syncsn_100ep_lsj"
