"""Mask R-CNN R-50-FPN, SN, Detectron's 2x.

Two images a process or more: with one, the batch statistic is the instance's in training only.
Published: 41.0 box AP, 36.5 mask AP (SN paper, Table VI).
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.norms import released
from ..common.protocols.detectron1 import follow

use_norm(model, released("SN"))
lr_multiplier = follow(model, optimizer, train, "2x")
train.batch_average_iters = 200
train.pretrained = "wsbcn://resnet50_sn_8x2"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_sn_2x"
