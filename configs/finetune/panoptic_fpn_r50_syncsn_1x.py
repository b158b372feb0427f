"""Panoptic FPN R-50, SyncSN, 1x."""

from wsbcn_d2.modeling import use_norm

from ..common.norms import released
from ..common.panoptic_fpn import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, released("SyncSN"))
train.batch_average_iters = 200
train.pretrained = "wsbcn://resnet50_sn_8x32"
train.output_dir = "./output/finetune/panoptic_fpn_r50_syncsn_1x"
