"""SwitchNorm_Detection's protocol: Detectron's, in Detectron.pytorch.

Its SN keeps 0.997 of a moving average, which it evaluates with, and has unbiased variances.
"""

from ..norms import released
from .detectron1 import follow as follow_detectron

MOMENTUM = 1 - 0.997  # torch's convention


def follow(model, optimizer, train, schedule):
    """As Detectron's `follow`; of a C4 model too, whose pooling has samples as it takes."""
    lr_multiplier = follow_detectron(model, optimizer, train, schedule)
    train.protocol = "SwitchNorm_Detection"
    if "pooler" in model.roi_heads:
        model.roi_heads.pooler.update(pooler_type="ROIAlign", sampling_ratio=0)
    return lr_multiplier


def switch_norm():
    """SN as it is there."""
    return released("SN", momentum=MOMENTUM)
