"""A snapshot of `resnet50_sn_8x32`, finetuned with one statistic a layer, the one it uses most.

arXiv:1907.10473, Table III: 77.4, 77.1, 76.9 top-1 from epochs 30, 60, 90. `tools/harden.py` makes
``train.init_checkpoint`` of the snapshot. The schedule is an assumption, as the paper gives none:
what SN's own has left after 30 epochs.
"""

from wsbcn_d2.modeling import use_norm

from ..common.sn_imagenet import (
    dataloader,
    drops,
    model,
    optimizer,
    train,
    use_schedule,
    use_setting,
)

use_norm(model, "SSN")
use_setting(gpus=8, images_per_gpu=32, batch_average=True)
use_schedule(epochs=60, total_batch_size=256, lr=0.01)
lr_multiplier = drops(30, of=60)
train.output_dir = "./output/classification/imagenet/resnet50_ssn_hard_finetune_8x32"
