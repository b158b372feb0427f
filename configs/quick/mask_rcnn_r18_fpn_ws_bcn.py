"""The quick job with Batch-Channel Normalization and weight standardization."""

from wsbcn_d2.modeling import use_norm

from ..common.quick import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "BCN", standardize=True)
# 32 channels in stem and res2 are as few as 32 groups take.
train.silence = ["gn-one-channel"]
train.output_dir = "./output/quick/mask_rcnn_r18_fpn_ws_bcn"
