"""DeepLabV3 of the WS and BCN releases: ResNet-101 on PASCAL VOC with SBD's label maps.

50 epochs of batches of 16, a learning rate of 0.007, weight decay of all parameters, crops of 513.
"""

import math

from .base import loaders, optimizer, poly, random_crops, train
from .models import deeplab_v3

NUM_CLASSES = 21
NUM_IMAGES = 10_582

model = deeplab_v3(101, NUM_CLASSES, output_stride=16, auxiliary=False)
model.sem_seg_head.update(pool_norm=True, dropout=0.0)
model.align_corners = True
dataloader = loaders(
    "voc_2012_sem_seg_train_aug",
    "voc_2012_sem_seg_val",
    NUM_CLASSES,
    random_crops(513),
    total_batch_size=16,
)
train.max_iter = 50 * math.ceil(NUM_IMAGES / 16)
optimizer.lr = 0.007
optimizer.params.weight_decay_norm = 1e-4
lr_multiplier = poly()
