"""The SN paper's DeepLab on ADE20K, as SwitchNorm_Segmentation has it: a dilated ResNet-50.

One 3x3 convolution and a predictor on res5, the same on res4 with a weight of 0.4; images of 300
to 600 pixels, eight GPUs of two, 100,000 iterations at a learning rate of 0.02. There the loss is
taken at an eighth of the images' size, here at their own.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from projects.semantic_segmentation.semantic_segmentation import FCNHead

from .base import loaders, optimizer, poly, train
from .models import dilated_resnet, segmentor

NUM_CLASSES = 150

model = segmentor(
    dilated_resnet(50),
    *(
        L(FCNHead)(
            in_feature=feature,
            in_channels=channels,
            channels=512,
            num_classes=NUM_CLASSES,
            norm="",
            dropout=0.0,
        )
        for feature, channels in (("res5", 2048), ("res4", 1024))
    ),
)
dataloader = loaders(
    "ade20k_sem_seg_train",
    "ade20k_sem_seg_val",
    NUM_CLASSES,
    [
        L(T.ResizeShortestEdge)(
            short_edge_length=(300, 375, 450, 525, 600), max_size=1000, sample_style="choice"
        ),
        L(T.RandomFlip)(),
    ],
    total_batch_size=16,
)
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=450, max_size=1000)
]
train.max_iter = 100_000
train.images_per_gpu = 2
optimizer.lr = 0.02
lr_multiplier = poly()
