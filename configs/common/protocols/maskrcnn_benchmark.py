"""maskrcnn-benchmark's protocol: that of the Weight Standardization release's detectors.

Detectron's, but norms' weights decay like all others: only what is called a bias does not.

The release's config files were not found. In its eight rows the box head, the frozen stages and,
for Faster R-CNN, the 1x schedule are assumed: those of the GN baselines of maskrcnn-benchmark
(configs/gn_baselines/e2e_*_Xconv1fc_1x_gn.yaml), whose fork the release is.
"""

from .detectron1 import follow as follow_detectron


def follow(model, optimizer, train, schedule, total_batch_size=16):
    """As Detectron's `follow`."""
    lr_multiplier = follow_detectron(model, optimizer, train, schedule, total_batch_size)
    train.protocol = "maskrcnn-benchmark"
    optimizer.params.weight_decay_norm = None  # the optimizer's
    return lr_multiplier
