"""Two epochs of CIFAR-10 at 64 pixels for the backbone of the quick detectors: minutes on a CPU."""

import os

from detectron2.config import LazyCall as L
from torchvision.transforms import v2

from projects.classification.classification import cifar
from wsbcn_d2 import get_config

from .base import cosine, iterations, optimizer, train
from .loaders import loaders
from .models import classifier

backbone = get_config("common/models/mask_rcnn_r18_fpn").model.backbone.bottom_up
backbone.num_classes = 10
backbone.out_features = ["res4", "linear"]
model = classifier(backbone)

root = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "cifar10")
dataloader = loaders(
    train=L(cifar)(root=root, split="train"),
    test=L(cifar)(root=root, split="test"),
    total_batch_size=64,
    augmentations=[
        L(v2.RandomHorizontalFlip)(),
        L(v2.RandomResizedCrop)(size=64, scale=(0.5, 1.0)),
    ],
    resizing=[L(v2.Resize)(size=64)],
    num_workers=1,
)

train.max_iter = iterations(2, 50_000, total_batch_size=64)
train.eval_period = 0
train.seed = 0
optimizer.lr = 0.1
lr_multiplier = cosine()
