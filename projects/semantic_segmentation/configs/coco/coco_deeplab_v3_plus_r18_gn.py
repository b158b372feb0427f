"""A small DeepLabV3+ with GN on COCO's things and stuff, from the panoptic annotations."""

from wsbcn_d2.modeling import use_norm

from ..common.coco import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "GN")
train.output_dir = "./output/semantic_segmentation/coco/coco_deeplab_v3_plus_r18_gn"
