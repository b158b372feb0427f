"""As coco.py at one scale in training too, the papers': 800, 1333 at most on the long side."""

from .coco import dataloader

dataloader.train.mapper.augmentations[0].short_edge_length = [800]
