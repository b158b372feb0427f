"""The quick job: a small Mask R-CNN on the embedded digits, from scratch, one image per process.

Two images a step: two processes (`--num-gpus 2`) see one image each.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from .data.digits import dataloader
from .models.mask_rcnn_r18_fpn import model
from .optim import optimizer
from .train import train

train.max_iter = 2200
train.eval_period = 550
train.checkpointer.period = 550
train.scale_lr.reference_batch_size = 2
train.seed = 0

optimizer.lr = 0.02

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=200 / 2200,
    warmup_factor=0.001,
)
