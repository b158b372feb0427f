"""What the learned ratios of switchable norms say.

Here is the record that every run keeps; `run_ratios` reads it or a checkpoint, `ratio_bars` and
`ratio_curves` draw it, and import matplotlib.
"""

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
