"""Faster R-CNN R-101-FPN, SN, 1x."""

from .faster_rcnn_r50_fpn_sn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "wsbcn://resnet101_sn_8x32"
# The only published weights of ResNet-101 with SN.
train.silence = ["pretraining-minibatch"]
train.output_dir = "./output/finetune/faster_rcnn_r101_fpn_sn_1x"
