"""What can be wrong with a run, looked for before it starts.

* `start`: what would end it: arguments, folders, datasets, weights.
* `advice`: what is known to go wrong with a model's norms; `rules` are its checks.
"""

from . import rules  # noqa: F401  registers the checks
from .advice import check, give_advice, report_advice
from .start import check_config, check_start

__all__ = ["check", "check_config", "check_start", "give_advice", "report_advice"]
