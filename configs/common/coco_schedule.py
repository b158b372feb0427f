"""Schedules on COCO: iterations, and the learning rate multiplier with its drops.

Two families, which differ by two percent in length: ``1x``, ``2x``, ``3x`` are Detectron's, in
iterations of 16 images; ``12e``, ``24e``, ``20_23_24e`` are mmdetection's, in epochs. The tables of
mmdetection call the first two of these 1x and 2x as well.
"""

import math

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

# Images of train2017 with at least one annotation; the others are not trained on.
IMAGES_PER_EPOCH = 117_266


def multiplier(max_iter, drops, warmup_steps=1000):
    """Linear warm-up from a thousandth, then tenfold drops of the learning rate.

    Args:
        max_iter: iterations of the whole training.
        drops: iterations at which the learning rate drops.
        warmup_steps: iterations of the warm-up.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[10.0**-k for k in range(len(drops) + 1)], milestones=[*drops, max_iter]
        ),
        warmup_length=warmup_steps / max_iter,
        warmup_factor=0.001,
    )


def iterations(epochs, total_batch_size=16):
    """Iterations of ``epochs`` epochs at ``total_batch_size`` images a step."""
    return epochs * math.ceil(IMAGES_PER_EPOCH / total_batch_size)


max_iter_1x = 90_000
lr_multiplier_1x = multiplier(max_iter_1x, drops=[60_000, 80_000])
max_iter_2x = 180_000
lr_multiplier_2x = multiplier(max_iter_2x, drops=[120_000, 160_000])
# 3x drops where detectron2's does: 60k and 20k steps before the end.
max_iter_3x = 270_000
lr_multiplier_3x = multiplier(max_iter_3x, drops=[210_000, 250_000])

max_iter_12e = iterations(12)
lr_multiplier_12e = multiplier(max_iter_12e, [iterations(8), iterations(11)], warmup_steps=500)
max_iter_24e = iterations(24)
lr_multiplier_24e = multiplier(max_iter_24e, [iterations(16), iterations(22)], warmup_steps=500)
lr_multiplier_20_23_24e = multiplier(
    max_iter_24e, [iterations(20), iterations(23)], warmup_steps=500
)
