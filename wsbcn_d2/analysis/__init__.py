"""What the learned ratios of switchable norms say: a record over training, tables and pictures."""

from .layer_names import layer_label, layer_part
from .ratio_log import LayerRatios, RatioLog, read_ratio_log
from .ratios import collect_ratios, switch_layers

__all__ = [
    "LayerRatios",
    "RatioLog",
    "collect_ratios",
    "layer_label",
    "layer_part",
    "read_ratio_log",
    "switch_layers",
]
