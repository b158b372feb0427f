"""Faster R-CNN R-18-FPN, GN+WS, finetuned on small data.

From the backbone that projects/classification pretrains on CIFAR-10.
"""

from ..common.small import follow
from .faster_rcnn_r18_fpn_ws_gn_scratch import dataloader, model, optimizer, train

lr_multiplier = follow(train, epochs=5, min_iter=1000)
train.pretrained = "output/classification/pretrain/mask_rcnn_r18_ws_gn_cifar10/model_final.pth"
train.output_dir = "./output/small/faster_rcnn_r18_fpn_ws_gn_finetune"
