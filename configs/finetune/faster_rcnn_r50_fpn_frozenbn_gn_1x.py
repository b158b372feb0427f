"""Faster R-CNN R-50-FPN, FrozenBN in the backbone, GN in FPN and heads, Detectron's 1x.

Published: 37.2 box AP (SN paper, Table V).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train
from ..common.models.zoo import as_msra
from ..common.protocols.detectron1 import follow

as_msra(model, dataloader)
use_norm(model, "FrozenBN", "GN")
lr_multiplier = follow(model, optimizer, train, "1x")
train.pretrained = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_frozenbn_gn_1x"
