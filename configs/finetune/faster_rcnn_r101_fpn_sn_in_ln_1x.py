"""Faster R-CNN R-101-FPN, SN without its batch statistic, Detectron's 1x.

No such weights are published: projects/classification trains some.
"""

from .faster_rcnn_r50_fpn_sn_in_ln_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.pretrained = "weights/resnet101_sn_in_ln.pth"
train.output_dir = "./output/finetune/faster_rcnn_r101_fpn_sn_in_ln_1x"
