"""Mask R-CNN R-101-FPN, SN, Detectron's 2x.

Published weights of this depth had 32 images a GPU, too far from 2: projects/classification
trains some with 2.
"""

from .mask_rcnn_r50_fpn_sn_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "weights/resnet101_sn_8x2.pth"
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_sn_2x"
