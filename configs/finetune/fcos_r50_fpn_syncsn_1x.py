"""FCOS R-50-FPN, SyncSN, 1x.

The head, one for all levels, has SN without a batch statistic: running ones would be those of
all levels mixed, which no level has in training.
"""

from wsbcn_d2.modeling import use_norm

from ..common.fcos_fpn import dataloader, lr_multiplier, model, optimizer, train
from ..common.norms import released

use_norm(model, released("SyncSN"))
model.head.norm = "SN_IN_LN"
train.batch_average_iters = 200
train.pretrained = "wsbcn://resnet50_sn_8x32"
train.output_dir = "./output/finetune/fcos_r50_fpn_syncsn_1x"
