"""Schedules in COCO epochs; iterations follow from the images of a step."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

# Detectron's 1x: 90k steps of 16 images, about 12 epochs of train2017.
IMAGES_1X = 90_000 * 16
WARMUP_STEPS = 1000


def schedule(num_x, milestones, total_batch_size=16):
    """Iterations and learning rate multiplier of ``num_x`` times the 1x schedule.

    Args:
        num_x: length in units of 1x.
        milestones: where the learning rate drops tenfold, as shares of the length.
        total_batch_size: images a step, over all processes.

    Returns:
        ``(max_iter, lr_multiplier)``.
    """
    max_iter = round(num_x * IMAGES_1X / total_batch_size)
    lr_multiplier = L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[10.0**-k for k in range(len(milestones) + 1)],
            milestones=[round(share * max_iter) for share in milestones] + [max_iter],
        ),
        warmup_length=WARMUP_STEPS / max_iter,
        warmup_factor=0.001,
    )
    return max_iter, lr_multiplier


max_iter_2x, lr_multiplier_2x = schedule(2, milestones=[6 / 9, 8 / 9])
# 3x ends as detectron2's does: the last two drops at 60k and 20k steps before the end of 270k.
max_iter_3x, lr_multiplier_3x = schedule(3, milestones=[21 / 27, 25 / 27])
