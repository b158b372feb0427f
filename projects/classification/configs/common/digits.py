"""The embedded digits at 16 pixels a side: 1,438 for training, 359 for validation."""

from detectron2.config import LazyCall as L
from torchvision.transforms import v2

from projects.classification.classification import digits

from .base import cosine, iterations, optimizer, train
from .loaders import loaders
from .models import cifar_resnet

model = cifar_resnet(depth=8)

# No flips: a mirrored digit is no digit.
dataloader = loaders(
    train=L(digits)(split="train", size=16),
    test=L(digits)(split="val", size=16),
    total_batch_size=32,
    augmentations=[
        L(v2.RandomAffine)(degrees=12, translate=(0.1, 0.1), scale=(0.85, 1.15)),
    ],
    num_workers=0,
)

train.max_iter = iterations(24, 1438, total_batch_size=32)
train.eval_period = train.checkpointer.period = train.max_iter // 4
train.scale_lr.reference_batch_size = 32
train.seed = 0
optimizer.lr = 0.1
lr_multiplier = cosine()
