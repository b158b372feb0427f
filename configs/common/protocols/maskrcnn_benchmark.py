"""maskrcnn-benchmark's protocol: that of the Weight Standardization release's detectors.

Detectron's, but norms' weights decay like all others: only what is called a bias does not.

The release's config files were not at hand. In its eight rows the box head, the frozen stages and,
for Faster R-CNN, the 1x schedule are therefore assumed.
"""

from .detectron1 import follow as follow_detectron


def follow(model, optimizer, train, schedule, total_batch_size=16):
    """As Detectron's `follow`."""
    lr_multiplier = follow_detectron(model, optimizer, train, schedule, total_batch_size)
    train.protocol = "maskrcnn-benchmark"
    optimizer.params.weight_decay_norm = None  # the optimizer's
    return lr_multiplier
