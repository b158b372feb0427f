"""DeepLabV3+ on the digits with SyncSN, one image a process."""

from wsbcn_d2.modeling import use_norm

from ..common.digits import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SyncSN")
train.output_dir = "./output/semantic_segmentation/digits/digits_deeplab_v3_plus_r18_syncsn"
