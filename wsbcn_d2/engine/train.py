"""A whole run: set-up, training or evaluation, and what is left on disk and in the log after it."""

from __future__ import annotations

import argparse
import copy
import errno
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import default_argument_parser, default_setup, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import nn

from ..checkpoint import WSBCNCheckpointer
from ..checkpoint.files import disk_error, root_os_error
from ..data.train_loader import BadDataError, TrainLoader, WorkerError
from ..errors import UserError, exit_with_message
from ..norms import prepare_sync_norms
from .batch import BatchPlan, correct_momentum, scale_learning_rate
from .buffers import average_buffers
from .config import (
    check_arguments,
    check_config,
    load_config,
    resolve_config_file,
    resolve_device,
)
from .config_record import config_changes, describe_changes, flatten_config
from .data_check import check_data
from .detection import Detection
from .hooks import BufferAverager, EvalHook, ModelEMA, SkippedImages, is_due
from .job import Job, Results, build_job
from .launch import end_process, is_consequence, launch, planned_world_size, under_torchrun
from .norm_hooks import BatchAverage, SparsityRamp
from .options import Config, read_options
from .preemption import StopOnSignal, TrainingStopped, forward_signals
from .ratio_writer import RatioWriter
from .resume import Progress, RankStates
from .resumed_optimizer import ResumedOptimizer
from .task import Task
from .trainer import Trainer

__all__ = ["argument_parser", "evaluate", "main", "run", "run_command_line", "train"]

logger = logging.getLogger(__name__)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def argument_parser(epilog: str = "") -> argparse.ArgumentParser:
    """detectron2's arguments and ours; ``--dist-url`` picks a free port for one machine."""
    parser = default_argument_parser(epilog)
    parser.add_argument(
        "--dataset",
        metavar="FOLDER",
        default="",
        help="your own images and labels (COCO, VOC, YOLO, LabelMe, CSV), as data.train=FOLDER",
    )
    parser.set_defaults(dist_url="auto")
    return parser


def run_command_line(task: Task | None = None, epilog: str = "") -> None:
    """The ``main`` of a script: parse the command line and `run`; exit with one message on errors.

    Args:
        task: what is learned; `Detection` if None.
        epilog: of the script's ``--help``.

    Raises:
        SystemExit: with status 1 after an error, `EXIT_STOPPED` after a stop signal.
    """
    args = argument_parser(epilog).parse_args()
    with exit_with_message(os.path.basename(sys.argv[0])):
        run(args, task)
    if under_torchrun():
        end_process(0)


def run(args: argparse.Namespace, task: Task | None = None) -> None:
    """Check the command line and its config, then start the processes that run `main`.

    Args:
        args: from `argument_parser`.
        task: what is learned; `Detection` if None.

    Raises:
        ConfigError: a mistake in the command line or config, before any process is started.
        UserError: another error that the user can put right, from any process.
        RankFailedError: one of several processes failed otherwise.
        SystemExit: with status `EXIT_STOPPED`, when a signal stopped the training in good order.
    """
    task = task or Detection()
    check_arguments(args)
    cfg, device = _load(args, task)
    world_size = planned_world_size(args.num_gpus, args.num_machines)
    check_config(cfg, args, world_size, task)
    if args.num_machines == 1 and not under_torchrun():
        check_data(cfg, args, task)
    # This process only waits, unless it is the one that trains.
    spawns = world_size > 1 and not under_torchrun()
    with forward_signals(read_options(cfg).signal_numbers() if spawns else []):
        launch(
            main,
            args.num_gpus,
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            (args, task),
            device=device,
        )


def main(args: argparse.Namespace, task: Task | None = None) -> Results:
    """One process of a run.

    Args:
        args: from `argument_parser`.
        task: what is learned; `Detection` if None.

    Returns:
        the last evaluation's results (on rank 0).
    """
    task = task or Detection()
    cfg, device = _load(args, task)
    try:
        _set_up(cfg, args)
        if args.num_machines > 1 or under_torchrun():
            check_data(cfg, args, task)
        job = build_job(cfg, device, task)
        return evaluate(job, args.resume) if args.eval_only else train(job, args.resume)
    except Exception as error:
        cause = root_os_error(error)
        if isinstance(error, UserError) or cause is None or cause.errno not in _DISK_FULL:
            raise
        path = cause.filename or os.path.join(read_options(cfg).output_dir, "…")
        raise UserError(disk_error(path, cause)) from error


def _load(args: argparse.Namespace, task: Task) -> tuple[Config, str]:
    # Registers its datasets, which a config may then name.
    from .. import data  # noqa: F401

    path = resolve_config_file(args.config_file)
    cfg = load_config(path, args.opts, task, dataset=getattr(args, "dataset", ""))
    return cfg, resolve_device(read_options(cfg), args.opts)


def _set_up(cfg: Config, args: argparse.Namespace) -> None:
    """Loggers, config.yaml, seeds."""
    args = copy.copy(args)
    args.config_file = resolve_config_file(args.config_file)
    folder = read_options(cfg).output_dir
    # Before default_setup: its own messages are detectron2's.
    for name in ("wsbcn_d2", "py.warnings"):
        setup_logger(folder, distributed_rank=comm.get_rank(), name=name)
    logging.captureWarnings(True)
    default_setup(cfg, args)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_shorten)
    for handler in logging.getLogger("detectron2").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.addFilter(lambda record: not getattr(record, "only_in_file", False))


def _shorten(record: logging.LogRecord) -> bool:
    """Log an exception that leaves the training loop without traceback where that says nothing.

    That is a `UserError`, which goes to the log file only as the command ends with it, and the
    consequences of another rank's failure.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and (isinstance(error, UserError) or is_consequence(error)):
        record.msg, record.args, record.exc_info = f"{record.getMessage()} {error}", (), None
        record.only_in_file = isinstance(error, UserError)
    return True


def train(job: Job, resume: bool) -> Results:
    """Train, evaluate, and leave everything in the output folder. All ranks call it.

    Args:
        job: what to do.
        resume: go on from the last checkpoint in the output folder, if there is one.

    Raises:
        NonFiniteLossError: a loss is not finite, as `Trainer.check_losses`.
        BadDataError: an image cannot be used, or too many were skipped.
        WorkerError: a data loader worker died.
        TrainingStopped: a signal of ``train.stop_signals`` came; the checkpoint is saved.
    """
    options = job.options
    if options.deterministic:
        # Read by cuBLAS when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    # A config that hides its batch accumulates nothing, and its loader knows no position.
    plan = job.plan or BatchPlan(0, 0, comm.get_world_size())
    model = job.build_model()
    logger.info("Model:\n%s", model)
    if options.correct_momentum and plan.steps > 1:
        changed = correct_momentum(model, plan.steps)
        logger.info("Corrected the momentum of %d layers for accumulation", changed)
    _synchronize_norms(job, model)
    optimizer = job.build_optimizer(model)
    if options.scale_lr.enabled and plan.total:
        scale_learning_rate(optimizer, plan.total, options.scale_lr.reference_batch_size)
    scheduler = job.build_scheduler(optimizer)
    wrapped = _wrap(job, model)
    # The loader is made when it is known where the training starts.
    trainer = Trainer(
        wrapped,
        [],
        optimizer,
        accumulation_steps=plan.steps,
        device=job.device,
        amp_dtype=options.amp.autocast_dtype(job.device),
        clip_grad=options.clip_grad.arguments(),
        last_checkpoint=lambda: checkpointer.get_checkpoint_file(),
    )
    ema = ModelEMA(model, options.ema.decay) if options.ema.enabled else None
    # The average first: the ranks' own buffers, loaded with the trainer, are its too.
    state = {"trainer": trainer} if ema is None else {"ema": ema.averaged, "trainer": trainer}
    images = plan.images_per_gpu or None
    config = flatten_config(job.cfg)
    checkpointer = WSBCNCheckpointer(
        wrapped, options.output_dir, images_per_process=images, config=config, **state
    )
    resumed_optimizer = ResumedOptimizer(optimizer, scheduler, model)
    # With a period of 0, at the end only.
    period = options.checkpointer.period if options.checkpointer.period > 0 else options.max_iter
    max_to_keep = options.checkpointer.max_to_keep
    saver = hooks.PeriodicCheckpointer(checkpointer, period, max_to_keep=max_to_keep)
    evaluated = model if ema is None else ema.averaged.module
    models = [model] if ema is None else [model, evaluated]
    progress, rank_states = Progress(plan), RankStates(models, period)
    results: Results = {}

    def evaluate_now() -> Results:
        results.clear()
        averaged = batch_average.for_evaluation() if batch_average and ema is None else evaluated
        results.update(job.evaluate(averaged))
        return results

    def save_now() -> str:
        if not is_due(trainer.iter, period, options.max_iter):
            rank_states.gather(buffers=True)
            for each in models:
                average_buffers(each)
            if comm.is_main_process():
                saver.period = 1
                saver.step(trainer.iter)
            comm.synchronize()
        return checkpointer.get_checkpoint_file()

    batch_average = None
    if options.batch_average_iters > 0:
        batch_average = BatchAverage(
            model,
            options.batch_average_iters,
            lambda: job.build_train_loader(progress.seed, progress.position),
        )
    ratio_writer = RatioWriter(evaluated, options.log_period, options.output_dir)
    main_process = comm.is_main_process()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=scheduler),
            ema,
            progress,
            SparsityRamp(model, options.ssn_full_at),
            ratio_writer if main_process else None,
            batch_average,
            BufferAverager(models, [period, options.eval_period]),
            rank_states,
            saver if main_process else None,
            StopOnSignal(options.signal_numbers(), save_now),
            EvalHook(options.eval_period, evaluate_now),
        ]
    )
    start_iter = 0
    loaded = checkpointer.resume_or_load(options.init_checkpoint, resume=resume)
    if resume and checkpointer.has_checkpoint():
        start_iter = trainer.iter + 1
        resumed_optimizer.after_load(options.resume.new_hyperparameters)
        _log_changes(loaded.get("config"), config, options.resume.new_hyperparameters)
        saver.recent_checkpoints = checkpointer.periodic_checkpoints()
        logger.info("Resuming at iteration %d of %d", start_iter, options.max_iter)
        if options.seed >= 0:
            # Otherwise every resumed part would see the first part's images again.
            seed_all_rng(options.seed + comm.get_rank() + start_iter)
    elif main_process:
        if resume:
            logger.info("No checkpoint in %s to resume from: starting anew", options.output_dir)
        if options.pretrained and not options.init_checkpoint:
            logger.warning(
                "This recipe is made to start from %s, and starts from random weights. To "
                "finetune, add train.init_checkpoint=%s (or a file with those weights)",
                *(options.pretrained, options.pretrained),
            )
        for record in ("metrics.json", "ratios.json"):
            _set_aside(Path(options.output_dir) / record)
    progress.begin(options.seed, start_iter)
    loader = job.build_train_loader(progress.seed, progress.position)
    trainer.data_loader = loader
    if plan.total:
        logger.info("%s", plan)
    if options.exact_resume:
        trainer.seed = progress.seed
        logger.info("Seed %d, from position %d of the data", progress.seed, progress.position)
    if isinstance(loader, TrainLoader):
        progress.check_dataset(loader.num_samples)
        if options.bad_data.action == "skip":
            trainer.register_hooks([SkippedImages(lambda: loader.skipped, options.log_period)])
    if main_process:
        # Made here, as opening a writer creates its file.
        writers = default_writers(options.output_dir, options.max_iter)
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=options.log_period)])
    try:
        trainer.train(start_iter, options.max_iter)
    except TrainingStopped:
        # No rank exits, and has the others ended with it, before all have closed their files.
        comm.synchronize()
        raise
    except RuntimeError as error:
        # torch reports it from a signal handler, in whatever the process was doing.
        dead = "DataLoader worker" in str(error) and not isinstance(error, BadDataError)
        if not dead or not isinstance(loader, TrainLoader):
            raise
        raise WorkerError(_describe_dead_workers(loader, trainer.iter, error)) from error
    if main_process:
        _finish(job, evaluated, results, checkpointer.get_checkpoint_file())
    comm.synchronize()
    return results


def _log_changes(
    old: dict[str, str] | None, new: dict[str, str], new_hyperparameters: bool
) -> None:
    """Say how a resumed run's config differs from the one its checkpoint was written under."""
    changes = config_changes(old, new) if old is not None else {}
    if changes:
        logger.warning(
            "The config differs from the one that the checkpoint was written under:\n  %s",
            "\n  ".join(describe_changes(changes, new_hyperparameters)),
        )


def _wrap(job: Job, model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel, with several processes."""
    ddp = dict(job.options.ddp)
    if job.device == "cpu":
        ddp["device_ids"] = None
    wrapped = create_ddp_model(model, **ddp)
    if (
        job.options.exact_resume
        and (job.device == "cpu" or job.options.deterministic)
        and wrapped is not model
    ):
        # Gradients are summed in buckets, which are laid out anew after a run's first step; where a
        # number lies decides in which order a ring of three or more adds it up. The step after a
        # resume would round as a first step does, not as the interrupted run would have. So the
        # lasting layout is made now, at the price of less overlap with the backward pass.
        wrapped.reducer._push_all_rebuilt_params()
        wrapped.reducer._rebuild_buckets()
    return wrapped


def _describe_dead_workers(loader: TrainLoader, iteration: int, error: RuntimeError) -> str:
    workers = "; ".join(loader.dead_workers()) or str(error)
    return (
        f"the data loader of rank {comm.get_rank()} lost a process at iteration {iteration}: "
        f"{workers}\n"
        "  Killed without a message, it was most often the machine that ran out of memory: use "
        "fewer workers, or a smaller prefetch_factor (dataloader.train.…), or give the job more "
        "memory. --resume goes on from the last checkpoint."
    )


def _synchronize_norms(job: Job, model: nn.Module) -> None:
    node = job.options.sync_group_size == "node"
    size = comm.get_local_size() if node else int(job.options.sync_group_size)
    pooling = prepare_sync_norms(model, size)
    if pooling:
        logger.info(
            "%d norm layers pool their statistics over %d processes each",
            pooling,
            size or comm.get_world_size(),
        )


def evaluate(job: Job, resume: bool) -> Results:
    """Evaluate ``init_checkpoint``, or with ``resume`` the last checkpoint. All ranks call it.

    With the moving average enabled, its weights are evaluated, where the checkpoint has them.
    """
    model = job.build_model()
    ema = ModelEMA(model, job.options.ema.decay) if job.options.ema.enabled else None
    state: dict[str, Any] = {} if ema is None else {"ema": ema.averaged}
    checkpointer = WSBCNCheckpointer(model, job.options.output_dir, complete=True, **state)
    path = job.options.init_checkpoint
    if resume:
        path = checkpointer.find_loadable() or path
    checkpointer.load(path)
    evaluated = model
    if ema is not None:
        if ema.averaged.n_averaged > 0:
            evaluated = ema.averaged.module
        else:
            logger.warning("%s has no moving average; evaluating its weights", path)
    results = job.evaluate(evaluated)
    if comm.is_main_process():
        _finish(job, evaluated, results, path, training=False)
    comm.synchronize()
    return results


def _set_aside(path: Path) -> None:
    """Rename the record of an earlier run, so that this one does not append to it."""
    if path.exists():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
        old = path.with_name(f"{path.stem}.{stamp}{path.suffix}")
        path.rename(old)
        logger.warning("Not resuming: the earlier run's %s is now %s", path.name, old)


def _finish(
    job: Job, model: nn.Module, results: Results, checkpoint: str, training: bool = True
) -> None:
    """Draw the pictures, then log the AP table and where everything is."""
    # Imported here: matplotlib takes a second, which nothing else waits for.
    from .plots import plot_curves

    folder = Path(job.options.output_dir)
    rows = _rows(results)
    metrics = job.task.metrics or list(dict.fromkeys(m for _, row in rows for m in row))
    # A picture that fails must not fail a training that took days.
    if training:
        try:
            plot_curves(folder / "metrics.json", folder / "curves.png", metrics[:2])
        except Exception:
            logger.exception("curves.png was not drawn:")
    try:
        job.task.plot_predictions(model, job, str(folder / "predictions.png"))
    except Exception:
        logger.exception("predictions.png was not drawn:")
    logger.info("%s\n%s", _results_table(rows, metrics), _whereabouts(folder, checkpoint))


def _rows(results: Results) -> list[tuple[str, dict[str, float]]]:
    """Each task of each dataset, and its metrics."""
    rows = []
    for name, value in results.items():
        nested = any(isinstance(metrics, dict) for metrics in value.values())
        tasks: dict[str, Any] = value if nested else {"": value}
        rows += [(f"{name} {task}".strip(), metrics) for task, metrics in tasks.items()]
    return rows


def _results_table(rows: list[tuple[str, dict[str, float]]], metrics: Sequence[str]) -> str:
    if not rows:
        return "No evaluation results: the config has no evaluator."
    cells = [[title, *(row.get(name, math.nan) for name in metrics)] for title, row in rows]
    table = tabulate(cells, headers=["", *metrics], floatfmt=".2f", tablefmt="simple")
    return f"Final evaluation:\n{table}"


def _whereabouts(folder: Path, checkpoint: str) -> str:
    events = sorted(folder.glob("events.out.tfevents.*"))
    files = {
        "checkpoint": Path(checkpoint) if checkpoint else None,
        "resolved config": folder / "config.yaml",
        "log": folder / "log.txt",
        "metrics": folder / "metrics.json",
        "ratios": folder / "ratios.json",
        "curves": folder / "curves.png",
        "predictions": folder / "predictions.png",
        "detections": folder / "inference",
    }
    lines = [f"  {name + ':':<16} {path}" for name, path in files.items() if path and path.exists()]
    if events:
        lines.append(f"  {'TensorBoard:':<16} tensorboard --logdir {folder}")
    return "\n".join(["Everything is in " + str(folder.absolute()), *lines])
