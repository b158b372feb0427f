"""Mask R-CNN R-101-FPN, SN, 2x."""

from .mask_rcnn_r50_fpn_sn_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_sn_8x32"
# The only published weights of ResNet-101 with SN.
train.silence = ["pretraining-minibatch"]
train.output_dir = "./output/finetune/mask_rcnn_r101_fpn_sn_2x"
