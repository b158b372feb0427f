"""Schedules on COCO: iterations, and the learning rate multiplier with its drops."""

import math

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

# Images of train2017 with at least one annotation; the others are not trained on.
IMAGES_PER_EPOCH = 117_266

# Detectron's, in iterations of 16 images. 3x drops where detectron2's does, 60k and 20k before the
# end.
_ITERATIONS = {
    "1x": (90_000, (60_000, 80_000)),
    "2x": (180_000, (120_000, 160_000)),
    "3x": (270_000, (210_000, 250_000)),
}
# mmdetection's, in epochs; its tables call the first two 1x and 2x, the last two 3x and 6x.
_EPOCHS = {
    "12e": (12, (8, 11)),
    "24e": (24, (16, 22)),
    "20_23_24e": (24, (20, 23)),
    "28_34_36e": (36, (28, 34)),
    "65_71_73e": (73, (65, 71)),
}


def iterations(schedule, total_batch_size=16):
    """Iterations of a whole training, and those at which its learning rate drops.

    Args:
        schedule: "1x", "12e", "20_23_24e", …
        total_batch_size: images a step.
    """
    if schedule in _ITERATIONS:
        length, drops = _ITERATIONS[schedule]
        return length * 16 // total_batch_size, [drop * 16 // total_batch_size for drop in drops]
    length, drops = _EPOCHS[schedule]
    epoch = math.ceil(IMAGES_PER_EPOCH / total_batch_size)
    return length * epoch, [drop * epoch for drop in drops]


def multiplier(max_iter, drops, warmup_steps=1000, warmup_factor=0.001):
    """Linear warm-up, then tenfold drops of the learning rate.

    Args:
        max_iter: iterations of the whole training.
        drops: iterations at which the learning rate drops.
        warmup_steps: iterations of the warm-up; 0 for none.
        warmup_factor: what it starts from.
    """
    steps = L(MultiStepParamScheduler)(
        values=[10.0**-k for k in range(len(drops) + 1)], milestones=[*drops, max_iter]
    )
    if not warmup_steps:
        return steps
    return L(WarmupParamScheduler)(
        scheduler=steps, warmup_length=warmup_steps / max_iter, warmup_factor=warmup_factor
    )
