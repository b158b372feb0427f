"""The digits' scenes, two images a step, and DeepLabV3+ on the backbone of the quick detectors."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab import DeepLabV3PlusHead

from projects.semantic_segmentation.semantic_segmentation import FCNHead, RandomScale
from wsbcn_d2 import get_config

from .base import loaders, optimizer, poly, train
from .models import segmentor

NUM_CLASSES = 11

backbone = get_config("common/models/mask_rcnn_r18_fpn").model.backbone.bottom_up
model = segmentor(
    backbone,
    L(DeepLabV3PlusHead)(
        input_shape=dict(
            res2=L(ShapeSpec)(channels=32, stride=4),
            res4=L(ShapeSpec)(channels=128, stride=16),
        ),
        project_channels=[32],
        aspp_dilations=[1, 2, 3],
        aspp_dropout=0.1,
        decoder_channels=[64, 64],
        common_stride=4,
        norm="",
        train_size=None,
        num_classes=NUM_CLASSES,
    ),
    L(FCNHead)(in_feature="res3", in_channels=64, channels=32, num_classes=NUM_CLASSES, norm=""),
)
backbone.out_features = ["res2", "res3", "res4"]
# Of the pixels 93% are background.
model.class_weights = [0.1] + [1.0] * 10

# No flips: a mirrored digit is no digit.
dataloader = loaders(
    "digits_sem_seg_train",
    "digits_sem_seg_val",
    NUM_CLASSES,
    [
        L(RandomScale)(low=0.8, high=1.25),
        L(T.FixedSizeCrop)(crop_size=(160, 160), pad_value=124.0, seg_pad_value=255),
    ],
    total_batch_size=2,
    num_workers=1,
)

train.max_iter = 2400
train.eval_period = train.checkpointer.period = 600
train.scale_lr.reference_batch_size = 2
train.seed = 0
optimizer.lr = 0.05
lr_multiplier = poly(warmup_length=0.05)
