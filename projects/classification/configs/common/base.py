"""Options and SGD of all recipes, and the arithmetic of their schedules."""

import math

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from wsbcn_d2 import get_config

train = get_config("common/train").train
optimizer = get_config("common/optim").optimizer


def iterations(epochs, num_images, total_batch_size):
    """Iterations of ``epochs`` times through ``num_images``, of ``total_batch_size`` each."""
    return epochs * math.ceil(num_images / total_batch_size)


def drops(*epochs, of):
    """Tenfold drops of the learning rate after these epochs of ``of``; no warm-up."""
    return L(MultiStepParamScheduler)(
        values=[10.0**-k for k in range(len(epochs) + 1)], milestones=list(epochs), num_updates=of
    )


def cosine(warmup_length=0.05):
    """Half a cosine down to 0, after a linear warm-up over this share of the training."""
    return L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
        warmup_length=warmup_length,
        warmup_factor=0.01,
    )
