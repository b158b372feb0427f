"""Cascade Mask R-CNN R-50-FPN, SyncSN, 1x."""

from wsbcn_d2.modeling import use_norm

from ..common.cascade_mask_rcnn_fpn import dataloader, lr_multiplier, model, optimizer, train
from ..common.norms import released

use_norm(model, released("SyncSN"))
train.batch_average_iters = 200
train.pretrained = "wsbcn://resnet50_sn_8x32"
train.output_dir = "./output/finetune/cascade_mask_rcnn_r50_fpn_syncsn_1x"
