"""Mask R-CNN R-50-FPN, sparse SN, from random weights, detectron2's 3x.

Its radius grows over the first nine tenths of the training.
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn_scratch import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SSN")
train.ssn_full_at = 0.9
train.batch_average_iters = 200
train.output_dir = "./output/scratch/mask_rcnn_r50_fpn_ssn_3x"
