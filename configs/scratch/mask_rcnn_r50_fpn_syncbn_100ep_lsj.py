"""Mask R-CNN R-50-FPN, SyncBN, from random weights, 100 epochs with large-scale jitter.

detectron2's new baseline as it is, but for the order of colours and the stride.
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn_lsj import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SyncBN", "naiveSyncBN_N")
train.output_dir = "./output/scratch/mask_rcnn_r50_fpn_syncbn_100ep_lsj"
