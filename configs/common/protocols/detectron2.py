"""detectron2's own protocol: L1 losses, ROIAlign with the half-pixel, samples as a box needs.

Its recipes jitter the short side (data/coco.py); those of others at one scale (data/coco_800.py).
"""

from ..coco_schedule import iterations, multiplier


def follow(train, schedule):
    """Make a config follow it, in place; returns the learning rate multiplier.

    Args:
        train: of any detector of detectron2's.
        schedule: as in `iterations`.
    """
    train.protocol = "detectron2"
    train.max_iter, drops = iterations(schedule)
    return multiplier(train.max_iter, drops)
