"""Mask R-CNN R-50-FPN, SN in two groups of channels, from random weights, detectron2's 3x.

The SN paper's group SN: each half of the channels has its own ratios (arXiv:1907.10473, Sec. 3).
"""

from detectron2.config import LazyCall as L

from wsbcn_d2.modeling import norm_with, use_norm

from ..common.mask_rcnn_fpn_scratch import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, L(norm_with)(name="SN", num_groups=2))
train.batch_average_iters = 200
train.output_dir = "./output/scratch/mask_rcnn_r50_fpn_sn_g2_3x"
