"""Faster R-CNN R-50-C4, conv5 as the box head: detectron2's Mask R-CNN without its mask head."""

from .zoo import from_zoo

model = from_zoo("mask_rcnn_c4")
model.roi_heads.mask_head = None
