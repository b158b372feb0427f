"""CIFAR-10 and 100 as the pytorch-classification scripts have them, of which WS's are a fork.

ResNets of 6n + 2 layers; 164 epochs of batches of 128, a learning rate of 0.1 with drops after 81
and 122; images padded by 4 and cropped to 32, flips.
"""

import os

from detectron2.config import LazyCall as L
from torchvision.transforms import v2

from projects.classification.classification import NormWithGroups, cifar
from wsbcn_d2.modeling import use_norm

from .base import drops, iterations, optimizer, train
from .loaders import loaders
from .models import cifar_resnet

root = os.getenv("DETECTRON2_DATASETS", "datasets")


def recipe(num_classes, depth, norm, standardize=False):
    """Model and loaders.

    Args:
        num_classes: 10 or 100.
        depth: 6n + 2.
        norm: its name; GN and BCN have 8 groups, as the first layers have 16 channels.
        standardize: whether with WS.
    """
    if norm in ("GN", "BCN"):
        norm = L(NormWithGroups)(name=norm, num_groups=8)
    model = use_norm(cifar_resnet(depth, num_classes), norm, standardize=standardize)
    folder = os.path.join(root, f"cifar{num_classes}")
    dataloader = loaders(
        train=L(cifar)(root=folder, split="train", num_classes=num_classes),
        test=L(cifar)(root=folder, split="test", num_classes=num_classes),
        total_batch_size=128,
        augmentations=[L(v2.RandomCrop)(size=32, padding=4), L(v2.RandomHorizontalFlip)()],
    )
    return model, dataloader


train.max_iter = iterations(164, 50_000, total_batch_size=128)
train.eval_period = train.checkpointer.period = 10 * iterations(1, 50_000, total_batch_size=128)
lr_multiplier = drops(81, 122, of=164)
optimizer.lr = 0.1
optimizer.params.weight_decay_norm = 1e-4
