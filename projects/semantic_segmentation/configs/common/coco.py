"""COCO's 133 things and stuff with the digits' network: a real data set in minutes."""

from .base import loaders, random_crops
from .digits import lr_multiplier, model, optimizer, train

NUM_CLASSES = 133

model.sem_seg_head.num_classes = model.auxiliary_head.num_classes = NUM_CLASSES
dataloader = loaders(
    "coco_2017_train_sem_seg",
    "coco_2017_val_sem_seg",
    NUM_CLASSES,
    random_crops(257, low=0.4, high=0.8),
    total_batch_size=2,
    num_workers=1,
)
