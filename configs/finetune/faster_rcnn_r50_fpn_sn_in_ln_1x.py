"""Faster R-CNN R-50-FPN, SN without its batch statistic, Detectron's 1x.

For one image a process; the SN paper's (8, 1).
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train
from ..common.norms import released
from ..common.protocols.detectron1 import follow

use_norm(model, released("SN_IN_LN"))
lr_multiplier = follow(model, optimizer, train, "1x")
train.pretrained = "wsbcn://resnet50_sn_in_ln_8x1"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_sn_in_ln_1x"
