"""Mask R-CNN R-50-FPN, FrozenBN in the backbone, SN in FPN and heads, Detectron's 2x.

Published: 40.0 box AP, 34.8 mask AP (SN paper, Table VI).
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.models.zoo import as_msra
from ..common.protocols.detectron1 import follow

as_msra(model, dataloader)
use_norm(model, "FrozenBN", "SN")
lr_multiplier = follow(model, optimizer, train, "2x")
train.batch_average_iters = 200
train.pretrained = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_frozenbn_sn_2x"
