"""Mask R-CNN R-50-FPN, FrozenBN in the backbone, no norm in FPN and heads: Detectron's 2x.

Published: 38.6 box AP, 34.2 mask AP (SN paper, Table VI).
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.models.zoo import as_msra, two_layer_box_head
from ..common.protocols.detectron1 import follow

as_msra(model, dataloader)
two_layer_box_head(model)
use_norm(model, "FrozenBN", "")
lr_multiplier = follow(model, optimizer, train, "2x")
train.pretrained = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_frozenbn_none_2x"
