"""DeepLabV3+ with SyncSN and WS on Cityscapes: what detectron2's own project trains with SyncBN."""

from wsbcn_d2.modeling import use_norm

from ..common.cityscapes import dataloader, lr_multiplier, optimizer, train
from ..common.cityscapes import deeplab_plus as model

use_norm(model, "SyncSN", standardize=True)
train.output_dir = "./output/semantic_segmentation/cityscapes/deeplab_v3_plus_r50_ws_syncsn_90k"
