"""Faster R-CNN R-50-FPN, SyncSN, Detectron's 1x.

Batch statistics over all processes, 16 images. Starts from weights of SN, which has the same
parameters, trained with 32: the nearest.
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train
from ..common.norms import released
from ..common.protocols.detectron1 import follow

use_norm(model, released("SyncSN"))
lr_multiplier = follow(model, optimizer, train, "1x")
train.batch_average_iters = 200
train.pretrained = "wsbcn://resnet50_sn_8x32"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_syncsn_1x"
