"""Small data: some hundred images of the user's own (`--dataset`); the digits without.

The length of a training follows their number (`follow`).
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from .data.digits import dataloader
from .models.mask_rcnn_fpn import model as mask_rcnn_r50
from .models.mask_rcnn_r18_fpn import model as mask_rcnn_r18
from .optim import optimizer
from .train import train

# Short sides in training and testing, images a step, learning rate. R-18: of the quick recipes,
# about. R-50: of COCO's, 0.02 for 16 images, in proportion.
_SETTINGS = {18: ((128, 176), 152, 2, 0.02), 50: ((640, 800), 800, 4, 0.005)}


def small(kind, depth):
    """The parts of a recipe: dataloader, model, optimizer, train.

    Args:
        kind: of R-CNN, "faster" or "mask".
        depth: 18, half as wide and for images of about 160 pixels, or 50, for 800.
    """
    model = {18: mask_rcnn_r18, 50: mask_rcnn_r50}[depth]
    sides, side, images, optimizer.lr = _SETTINGS[depth]
    if kind == "faster":
        for key in ("mask_in_features", "mask_pooler", "mask_head"):
            del model.roi_heads[key]
    dataloader.train.mapper.use_instance_mask = kind == "mask"
    longest = side * 5 // 3
    dataloader.train.mapper.augmentations = [
        L(T.ResizeShortestEdge)(short_edge_length=sides, max_size=longest, sample_style="range"),
        # 0.5 for what may be mirrored, unlike digits.
        L(T.RandomFlip)(prob=0.0),
    ]
    dataloader.test.mapper.augmentations = [
        L(T.ResizeShortestEdge)(short_edge_length=side, max_size=longest)
    ]
    dataloader.train.total_batch_size = train.scale_lr.reference_batch_size = images
    train.eval_period = train.checkpointer.period = 500
    train.checkpointer.max_to_keep = 2
    if depth == 18:
        # 32 channels in stem and res2 are as few as 32 groups take.
        train.silence = ["gn-one-channel"]
    return dataloader, model, optimizer, train


def follow(train, epochs, min_iter):
    """Train for so many epochs, and no fewer iterations, in place; returns the cosine schedule.

    Args:
        train: of a recipe.
        epochs: passes over the training images.
        min_iter: what fewer images take nevertheless.
    """
    train.epochs, train.min_iter = epochs, min_iter
    return L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
        warmup_length=0.1,
        warmup_factor=0.001,
    )
