"""Mask R-CNN R-50-FPN as in the papers; `use_norm` puts the norms in."""

from .zoo import from_zoo

model = from_zoo("mask_rcnn_fpn")
