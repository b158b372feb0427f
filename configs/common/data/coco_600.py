"""As coco.py at the scale of Table IV of the SN paper: 600, and 1000 at most on the long side."""

from .coco import dataloader

for mapper in (dataloader.train.mapper, dataloader.test.mapper):
    mapper.augmentations[0].update(short_edge_length=[600], max_size=1000)
