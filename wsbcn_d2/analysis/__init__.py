"""What a run says: the learned ratios of its switchable norms, its curves and its results.

Here is the record of ratios that every run keeps; `run_ratios` reads it or a checkpoint, and
`ratio_bars` and `ratio_curves` draw it. `curves` draws losses and evaluations, `summary` ends a
run's log, `run_folder` reads what is in its folder. Those that draw import matplotlib.
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
