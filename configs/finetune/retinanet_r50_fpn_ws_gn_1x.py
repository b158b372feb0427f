"""RetinaNet R-50-FPN, GN+WS, 1x."""

from wsbcn_d2.modeling import use_norm

from ..common.retinanet_fpn import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "GN", standardize=True)
train.pretrained = "wsbcn://resnet50_gn_ws"
train.output_dir = "./output/finetune/retinanet_r50_fpn_ws_gn_1x"
