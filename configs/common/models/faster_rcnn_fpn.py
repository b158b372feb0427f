"""Faster R-CNN R-50-FPN as in the papers: Mask R-CNN without its mask head."""

from .mask_rcnn_fpn import model

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    del model.roi_heads[key]
