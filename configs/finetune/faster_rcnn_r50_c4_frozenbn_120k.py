"""Faster R-CNN R-50-C4, FrozenBN in backbone and conv5, 120k iterations at 4 x 3 images.

Published: 29.6 box AP (SN paper, Table IV).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_c4_600 import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.zoo import as_msra, ceil_pool_stem

as_msra(model, dataloader)
ceil_pool_stem(model)
use_norm(model, "FrozenBN")
train.pretrained = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "./output/finetune/faster_rcnn_r50_c4_frozenbn_120k"
