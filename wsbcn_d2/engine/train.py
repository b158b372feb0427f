"""A training: its parts, the order of its hooks, and its steps."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from ..analysis.summary import summarize
from ..checkpoint import WSBCNCheckpointer
from ..checks import give_advice
from ..config import BatchPlan, RunConfig
from ..config.batch import correct_momentum, scale_learning_rate
from ..config.record import config_changes, describe_changes, flatten_config
from ..data.train_loader import BadDataError, TrainLoader, WorkerError
from ..norms import prepare_sync_norms
from .buffers import average_buffers
from .evaluation import Results, evaluate_model
from .hooks import BufferAverager, EvalHook, ModelEMA, SkippedImages, is_due
from .norm_hooks import BatchAverage, SparsityRamp
from .preemption import StopOnSignal, TrainingStopped
from .ratio_writer import RatioWriter
from .resume import DataPosition, RankStates
from .resumed_optimizer import ResumedOptimizer
from .trainer import Trainer

__all__ = ["train"]

logger = logging.getLogger(__name__)


def train(config: RunConfig, resume: bool) -> Results:
    """Train, evaluate, and leave everything in the output folder. All ranks call it.

    Args:
        config: of the run.
        resume: go on from the last checkpoint in the output folder, if there is one.

    Returns:
        the last evaluation's results, as `evaluate_model`.

    Raises:
        NonFiniteLossError: a loss is not finite, as `Trainer.check_losses`.
        BadDataError: an image cannot be used, or too many were skipped.
        WorkerError: a data loader worker died.
        TrainingStopped: a signal of ``train.stop_signals`` came; the checkpoint is saved.
    """
    training = Training(config)
    if not resume:
        give_advice(config, training.model)
    start_iter = training.load(resume)
    training.open_data(start_iter)
    training.run(start_iter)
    if comm.is_main_process():
        checkpoint = training.checkpointer.get_checkpoint_file()
        summarize(config, training.evaluated, training.results, checkpoint)
    comm.synchronize()
    return training.results


class Training:
    """The parts of a training, made in the order in which they need one another.

    Args:
        config: of the run.

    Attributes:
        evaluated: the model that is evaluated: the moving average's, or the trained one.
        results: of the last evaluation.
    """

    def __init__(self, config: RunConfig) -> None:
        options = config.options
        if options.deterministic:
            # Read by cuBLAS when it is first used.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        self.config, self.options = config, options
        # A config that hides its batch accumulates nothing, and its loader knows no position.
        self.plan = config.batch_plan() or BatchPlan(0, 0, comm.get_world_size())
        self.results: Results = {}

        self.model = self._build_model()
        self.optimizer = config.build_optimizer(self.model)
        if options.scale_lr.enabled and self.plan.total:
            reference = options.scale_lr.reference_batch_size
            scale_learning_rate(self.optimizer, self.plan.total, reference)
        self.scheduler = config.build_scheduler(self.optimizer)
        self.resumed_optimizer = ResumedOptimizer(self.optimizer, self.scheduler, self.model)
        wrapped = _wrap(config, self.model)
        self.trainer = Trainer(
            wrapped,
            [],  # made when it is known where the training starts
            self.optimizer,
            accumulation_steps=self.plan.steps,
            device=config.device,
            amp_dtype=options.amp.autocast_dtype(config.device),
            clip_grad=options.clip_grad.arguments(),
        )
        self.ema = ModelEMA(self.model, options.ema.decay) if options.ema.enabled else None
        self.evaluated = self.model if self.ema is None else self.ema.averaged.module
        self.models = [self.model] if self.ema is None else [self.model, self.evaluated]
        # The average first: the ranks' own buffers, loaded with the trainer, are its too.
        averaged: dict[str, Any] = {} if self.ema is None else {"ema": self.ema.averaged}
        self.config_record = flatten_config(config.cfg)
        self.checkpointer = WSBCNCheckpointer(
            wrapped,
            options.output_dir,
            images_per_process=self.plan.images_per_gpu or None,
            config=self.config_record,
            **averaged,
            trainer=self.trainer,
        )
        self.trainer.last_checkpoint = self.checkpointer.get_checkpoint_file
        # With a period of 0, at the end only.
        self.period = options.checkpointer.period or options.max_iter
        self.saver = hooks.PeriodicCheckpointer(
            self.checkpointer, self.period, max_to_keep=options.checkpointer.max_to_keep
        )
        self.position = DataPosition(self.plan)
        self.rank_states = RankStates(self.models, self.period)
        self.batch_average = self._batch_average() if options.batch_average_iters > 0 else None
        self.trainer.register_hooks(self._hooks())

    def _build_model(self) -> nn.Module:
        model = self.config.build_model()
        logger.info("Model:\n%s", model)
        if self.options.correct_momentum and self.plan.steps > 1:
            changed = correct_momentum(model, self.plan.steps)
            logger.info("Corrected the momentum of %d layers for accumulation", changed)
        synchronize_norms(model, self.options.sync_group_size)
        return model

    def _hooks(self) -> list[HookBase | None]:
        """The hooks, in the order in which they run after each step; None where a rank has none."""
        options, model, main_process = self.options, self.model, comm.is_main_process()
        return [
            # First, so that the time of no other hook counts as the step's.
            hooks.IterationTimer(),
            # Logs the rate of this step, then sets the next one's.
            hooks.LRScheduler(scheduler=self.scheduler),
            # Before whatever evaluates or saves: what belongs to this step.
            self.ema,
            self.position,
            SparsityRamp(model, options.ssn_full_at),
            RatioWriter(self.evaluated, options.log_period, options.output_dir)
            if main_process
            else None,
            # Replaces running statistics, and each rank's own are then averaged.
            self.batch_average,
            BufferAverager(self.models, [self.period, options.eval_period]),
            # All ranks', for the checkpoint that rank 0 saves.
            self.rank_states,
            self.saver if main_process else None,
            # After the periodic checkpoint, which it does not save again.
            StopOnSignal(options.signal_numbers(), self.save),
            # After the checkpoints, which an evaluation that fails does not cost.
            EvalHook(options.eval_period, self.evaluate),
            SkippedImages(options.log_period) if options.bad_data.action == "skip" else None,
            # Last: `run` adds what writes all that they have logged.
        ]

    def _batch_average(self) -> BatchAverage:
        def build_loader() -> Iterable[Any]:
            return self.config.build_train_loader(self.position.seed, self.position.position)

        return BatchAverage(self.model, self.options.batch_average_iters, build_loader)

    def load(self, resume: bool) -> int:
        """Load the last checkpoint, or the weights to start from; returns the first iteration."""
        options, checkpointer = self.options, self.checkpointer
        loaded = checkpointer.resume_or_load(options.init_checkpoint, resume=resume)
        if resume and checkpointer.has_checkpoint():
            start_iter = self.trainer.iter + 1
            self.resumed_optimizer.after_load(options.resume.new_hyperparameters)
            self._log_config_changes(loaded.get("config"))
            self.saver.recent_checkpoints = checkpointer.periodic_checkpoints()
            logger.info("Resuming at iteration %d of %d", start_iter, options.max_iter)
            if options.seed >= 0:
                # Otherwise every resumed part would see the first part's images again.
                seed_all_rng(options.seed + comm.get_rank() + start_iter)
            return start_iter
        if comm.is_main_process():
            if resume:
                logger.info("No checkpoint in %s to resume from: starting anew", options.output_dir)
            if options.pretrained and not options.init_checkpoint:
                logger.warning(
                    "This recipe is made to start from %s, and starts from random weights. To "
                    "finetune, add train.init_checkpoint=%s (or a file with those weights)",
                    *(options.pretrained, options.pretrained),
                )
            for record in ("metrics.json", "ratios.json"):
                set_aside(Path(options.output_dir) / record)
        return 0

    def _log_config_changes(self, saved: dict[str, str] | None) -> None:
        changes = config_changes(saved, self.config_record) if saved is not None else {}
        if changes:
            lines = describe_changes(changes, self.options.resume.new_hyperparameters)
            logger.warning(
                "The config differs from the one that the checkpoint was written under:\n  %s",
                "\n  ".join(lines),
            )

    def open_data(self, start_iter: int) -> None:
        """Make the training loader, at the position that belongs to an iteration."""
        position, trainer = self.position, self.trainer
        position.begin(self.options.seed, start_iter)
        trainer.data_loader = self.config.build_train_loader(position.seed, position.position)
        if isinstance(trainer.data_loader, TrainLoader):
            position.check_dataset(trainer.data_loader.num_samples)
        if self.plan.total:
            logger.info("%s", self.plan)
        if self.options.exact_resume:
            trainer.seed = position.seed
            logger.info("Seed %d, from position %d of the data", position.seed, position.position)

    def run(self, start_iter: int) -> None:
        """Run the iterations from ``start_iter`` to ``max_iter``."""
        options = self.options
        if comm.is_main_process():
            # Their files are opened once those of an earlier run are renamed.
            writers = default_writers(options.output_dir, options.max_iter)
            self.trainer.register_hooks([hooks.PeriodicWriter(writers, options.log_period)])
        try:
            self.trainer.train(start_iter, options.max_iter)
        except TrainingStopped:
            # No rank exits, and has the others ended with it, before all have closed their files.
            comm.synchronize()
            raise
        except RuntimeError as error:
            # torch reports it from a signal handler, in whatever the process was doing.
            loader = self.trainer.data_loader
            dead = "DataLoader worker" in str(error) and not isinstance(error, BadDataError)
            if not dead or not isinstance(loader, TrainLoader):
                raise
            raise WorkerError(_describe_dead_workers(loader, self.trainer.iter, error)) from error

    def evaluate(self) -> Results:
        """Evaluate the model as it is now. All ranks call it."""
        model = self.evaluated
        if self.batch_average is not None and self.ema is None:
            model = self.batch_average.for_evaluation()
        self.results = evaluate_model(self.config, model)
        return self.results

    def save(self) -> str:
        """Save a checkpoint now, unless the periodic one just was; returns its path. All ranks."""
        if not is_due(self.trainer.iter, self.period, self.options.max_iter):
            self.rank_states.gather(buffers=True)
            for model in self.models:
                average_buffers(model)
            if comm.is_main_process():
                self.saver.period = 1
                self.saver.step(self.trainer.iter)
            comm.synchronize()
        return self.checkpointer.get_checkpoint_file()


def _wrap(config: RunConfig, model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel, with several processes."""
    options = config.options
    ddp = dict(options.ddp)
    if config.device == "cpu":
        ddp["device_ids"] = None
    wrapped = create_ddp_model(model, **ddp)
    repeatable = config.device == "cpu" or options.deterministic
    if options.exact_resume and repeatable and wrapped is not model:
        # Gradients are summed in buckets, which are laid out anew after a run's first step; where a
        # number lies decides in which order a ring of three or more adds it up. The step after a
        # resume would round as a first step does, not as the interrupted run would have. So the
        # lasting layout is made now, at the price of less overlap with the backward pass.
        wrapped.reducer._push_all_rebuilt_params()
        wrapped.reducer._rebuild_buckets()
    return wrapped


def synchronize_norms(model: nn.Module, group_size: int | str) -> None:
    """Have a model's synchronized norms pool their statistics over groups of processes.

    Args:
        model: before it is wrapped in DistributedDataParallel.
        group_size: as ``train.sync_group_size``.
    """
    size = comm.get_local_size() if group_size == "node" else int(group_size)
    pooling = prepare_sync_norms(model, size)
    if pooling:
        logger.info(
            "%d norm layers pool their statistics over %d processes each",
            *(pooling, size or comm.get_world_size()),
        )


def set_aside(path: Path) -> None:
    """Rename the record of an earlier run, so that this one does not append to it."""
    if path.exists():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
        old = path.with_name(f"{path.stem}.{stamp}{path.suffix}")
        path.rename(old)
        logger.warning("Not resuming: the earlier run's %s is now %s", path.name, old)


def _describe_dead_workers(loader: TrainLoader, iteration: int, error: RuntimeError) -> str:
    workers = "; ".join(loader.dead_workers()) or str(error)
    return (
        f"the data loader of rank {comm.get_rank()} lost a process at iteration {iteration}: "
        f"{workers}\n"
        "  Killed without a message, it was most often the machine that ran out of memory: use "
        "fewer workers, or a smaller prefetch_factor (dataloader.train.…), or give the job more "
        "memory. --resume goes on from the last checkpoint."
    )
