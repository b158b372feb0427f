"""Faster R-CNN R-50-FPN, sparse SN, Detectron's 1x.

Its radius grows over the first nine tenths; the weights have the stem's pooling of Caffe.
"""

from wsbcn_d2.modeling import use_norm

from ..common.faster_rcnn_fpn import dataloader, model, optimizer, train
from ..common.models.zoo import ceil_pool_stem
from ..common.norms import released
from ..common.protocols.detectron1 import follow

use_norm(model, released("SSN"))
ceil_pool_stem(model)
lr_multiplier = follow(model, optimizer, train, "1x")
train.ssn_full_at = 0.9
train.batch_average_iters = 200
train.pretrained = "wsbcn://resnet50_ssn_8x2"
train.output_dir = "./output/finetune/faster_rcnn_r50_fpn_ssn_1x"
