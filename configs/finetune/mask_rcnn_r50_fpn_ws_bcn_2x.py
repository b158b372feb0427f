"""Mask R-CNN R-50-FPN, BCN+WS, mmdetection's 2x.

No COCO code was released: schedule and decay are those of the GN+WS rows; docs/norms.md has
the rest.
"""

from wsbcn_d2.modeling import use_norm

from ..common.mask_rcnn_fpn import dataloader, model, optimizer, train
from ..common.protocols.mmdetection import follow

use_norm(model, "BCN", standardize=True)
model.ws_eps_mode = "inside"  # as the release of BCN standardizes
lr_multiplier = follow(optimizer, train, "24e")
# The decay of the GN+WS rows beside it.
train.silence = ["norm-weight-decay"]
train.pretrained = "wsbcn://resnet50_bcn_ws"
train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_bcn_2x"
