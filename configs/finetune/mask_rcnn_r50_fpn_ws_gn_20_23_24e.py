"""Mask R-CNN R-50-FPN, GN+WS, 20-23-24e.

Published: 41.1 box AP, 37.1 mask AP (mmdetection's GN+WS table).
"""

from ..common.coco_schedule import lr_multiplier_20_23_24e as lr_multiplier
from .mask_rcnn_r50_fpn_ws_gn_2x import dataloader, model, optimizer, train

train.output_dir = "./output/finetune/mask_rcnn_r50_fpn_ws_gn_20_23_24e"
