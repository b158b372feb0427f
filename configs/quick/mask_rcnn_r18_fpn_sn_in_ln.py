"""The quick job with Switchable Normalization without a batch branch."""

from wsbcn_d2.modeling import use_norm

from ..common.quick import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SN_IN_LN")
train.output_dir = "./output/quick/mask_rcnn_r18_fpn_sn_in_ln"
