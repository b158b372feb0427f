"""The quick job with Batch-Channel Normalization and weight standardization.

Standardized as WS's release and BCN's DeepLabV3 do, with eps outside the root; BCN's ImageNet
weights, and so the recipes that start from them, have it inside.
"""

from wsbcn_d2.modeling import use_norm

from ..common.quick import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "BCN", standardize=True)
# 32 channels in stem and res2 are as few as 32 groups take.
train.silence = ["gn-one-channel"]
train.output_dir = "./output/quick/mask_rcnn_r18_fpn_ws_bcn"
