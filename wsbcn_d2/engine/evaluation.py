"""A run that only evaluates."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.utils import comm

from ..analysis.summary import summarize
from ..checkpoint import WSBCNCheckpointer
from ..config import Results, RunConfig
from .hooks import ModelEMA

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)


def evaluate(config: RunConfig, resume: bool) -> Results:
    """Evaluate a checkpoint. All ranks call it.

    With the moving average enabled, its weights are evaluated, where the checkpoint has them.

    Args:
        config: of the run.
        resume: evaluate the last checkpoint in the output folder, and not ``init_checkpoint``.

    Returns:
        as `RunConfig.evaluate`.
    """
    options = config.options
    model = config.build_model()
    ema = ModelEMA(model, options.ema.decay) if options.ema.enabled else None
    state: dict[str, Any] = {} if ema is None else {"ema": ema.averaged}
    checkpointer = WSBCNCheckpointer(model, options.output_dir, complete=True, **state)
    path = options.init_checkpoint
    if resume:
        path = checkpointer.find_loadable() or path
    checkpointer.load(path)
    evaluated = model
    if ema is not None:
        if ema.averaged.n_averaged > 0:
            evaluated = ema.averaged.module
        else:
            logger.warning("%s has no moving average; evaluating its weights", path)
    results = config.evaluate(evaluated)
    if comm.is_main_process():
        summarize(config, evaluated, results, path)
    comm.synchronize()
    return results
