"""ImageNet: random crops of 224 pixels and flips; evaluated on the centre of 256."""

import os

from detectron2.config import LazyCall as L
from torchvision.transforms import v2

from projects.classification.classification import image_folder

from .base import drops, iterations, optimizer, train
from .loaders import loaders
from .models import imagenet_resnet

NUM_IMAGES = 1_281_167

root = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "imagenet")
dataloader = loaders(
    train=L(image_folder)(root=os.path.join(root, "train")),
    test=L(image_folder)(root=os.path.join(root, "val")),
    total_batch_size=256,
    augmentations=[L(v2.RandomResizedCrop)(size=224), L(v2.RandomHorizontalFlip)()],
    resizing=[L(v2.Resize)(size=256), L(v2.CenterCrop)(size=224)],
    num_workers=8,
)
model = imagenet_resnet(50)

train.log_period = 100
train.checkpointer.max_to_keep = 5
# Of the norms' parameters too, as in the scripts of SN, WS and BCN.
optimizer.params.weight_decay_norm = 1e-4


def use_schedule(epochs, total_batch_size, lr=0.1):
    """Set the length of this recipe in epochs, its batch and its learning rate."""
    dataloader.train.total_batch_size = total_batch_size
    optimizer.lr = lr
    epoch = iterations(1, NUM_IMAGES, total_batch_size)
    train.max_iter = epochs * epoch
    train.eval_period = train.checkpointer.period = 5 * epoch
