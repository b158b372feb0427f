"""mmdetection's protocol since its version 2: that of its tables of GN and GN+WS detectors.

Losses and pooling are detectron2's. Norms' parameters decay like all others, but not from scratch.
"""

from ..coco_schedule import iterations, multiplier


def follow(optimizer, train, schedule):
    """Make a detector's config follow it, in place; returns the learning rate multiplier.

    Args:
        optimizer, train: of a Faster or Mask R-CNN with FPN.
        schedule: as in `iterations`.
    """
    train.protocol = "mmdetection"
    optimizer.params.weight_decay_norm = None  # the optimizer's
    train.max_iter, drops = iterations(schedule)
    return multiplier(train.max_iter, drops, warmup_steps=500)


def follow_scratch(dataloader, optimizer, train, schedule):
    """The same for a training from random weights, 2 images on each of 16 GPUs."""
    train.protocol = "mmdetection"
    dataloader.train.total_batch_size = train.scale_lr.reference_batch_size = 32
    optimizer.lr = 0.04
    train.max_iter, drops = iterations(schedule, total_batch_size=32)
    return multiplier(train.max_iter, drops, warmup_steps=500, warmup_factor=0.1)
