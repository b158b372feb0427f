"""Evaluating a model, and a run that does only that."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from ..analysis.summary import summarize
from ..checkpoint import WSBCNCheckpointer
from ..config import RunConfig
from ..data.evaluation_loader import name_bad_images
from .hooks import ModelEMA

__all__ = ["Results", "evaluate", "evaluate_model"]

logger = logging.getLogger(__name__)

Results = dict[str, Any]


def evaluate_model(config: RunConfig, model: nn.Module) -> Results:
    """Evaluate a model on every test set of a run. All ranks must call it.

    Args:
        config: of the run.
        model: not wrapped in DistributedDataParallel.

    Returns:
        task → metric → value on rank 0 (dataset → task → … with several test sets), and an
        empty dict elsewhere.
    """
    results: Results = OrderedDict()
    for name, loader, evaluator in config.evaluations():
        name_bad_images(loader)
        result = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            logger.info("Evaluation results for %s in csv format:", name)
            print_csv_format(result)
            results[name] = result
    if len(results) == 1:
        return next(iter(results.values()))
    return results


def evaluate(config: RunConfig, resume: bool) -> Results:
    """Evaluate a checkpoint. All ranks call it.

    With the moving average enabled, its weights are evaluated, where the checkpoint has them.

    Args:
        config: of the run.
        resume: evaluate the last checkpoint in the output folder, and not ``init_checkpoint``.

    Returns:
        as `evaluate_model`.
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
    results = evaluate_model(config, evaluated)
    if comm.is_main_process():
        summarize(config, evaluated, results, path)
    comm.synchronize()
    return results
