"""Faster R-CNN R-50-C4, GN, from random weights, 120k iterations at 4 x 3 images.

Published: 28.3 box AP (SN paper, Table IV).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_c4_600 import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.zoo import as_msra, ceil_pool_stem

as_msra(model, dataloader)
ceil_pool_stem(model)
use_norm(model, "GN")
model.backbone.freeze_at = 0
train.output_dir = "./output/scratch/faster_rcnn_r50_c4_gn_120k"
