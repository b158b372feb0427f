"""The SN paper's networks on Cityscapes: crops of 713, eight GPUs of two images, scales and flips.

The length is that of detectron2's DeepLab, 90,000 iterations: the paper trains by epochs.
"""

from .ade20k import model as ade20k_model
from .base import loaders, optimizer, poly, random_crops, train
from .models import deeplab_v3_plus, pspnet

NUM_CLASSES = 19

deeplab = ade20k_model
deeplab.sem_seg_head.num_classes = deeplab.auxiliary_head.num_classes = NUM_CLASSES
psp = pspnet(50, NUM_CLASSES)
deeplab_plus = deeplab_v3_plus(50, NUM_CLASSES)
for network in (deeplab, psp, deeplab_plus):
    network.test_window = 713
dataloader = loaders(
    "cityscapes_fine_sem_seg_train",
    "cityscapes_fine_sem_seg_val",
    NUM_CLASSES,
    random_crops(713),
    total_batch_size=16,
)
train.max_iter = 90_000
train.images_per_gpu = 2
optimizer.lr = 0.01
lr_multiplier = poly()
