"""A run's config: its options, and how to build its parts."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.utils.data as torchdata
from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..data.train_loader import TrainLoader, build_train_loader
from ..errors import ConfigError
from .batch import BatchPlan, plan_batch
from .options import Options, read_options
from .targets import (
    build,
    check_targets,
    explain_building,
    explain_optimizer,
    locate_target,
    takes_argument,
)
from .task import Task

__all__ = ["BATCH_KEYS", "Mapper", "RunConfig", "without_values"]

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any]]
# Images in an optimizer step, in lazy and in yaml configs.
BATCH_KEYS = ("dataloader.train.total_batch_size", "SOLVER.IMS_PER_BATCH")


class RunConfig:
    """The options of a run and the builders of its parts; returned by `read_config`.

    Parts are built on request only: an evaluation does not need the training data. This class reads
    what detectron2's ``lazyconfig_train_net.py`` reads; of a yaml config, `YamlRunConfig` does.

    Args:
        cfg: from `load_config`.
        task: the task of the run.
        world_size: number of processes.
        opts: overrides of the command line; a GPU that they ask for has to exist.

    Attributes:
        cfg: the config.
        task: the task of the run.
        world_size: number of processes.
        options: the config's `Options`.
        device: ``"cuda"``, ``"cuda:<index>"`` or ``"cpu"``.
        lazy: whether ``cfg`` is a lazy config, and otherwise a yaml one.

    Raises:
        ConfigError: options that are not allowed, or no GPU for the device in ``opts``.
    """

    lazy = True
    # Names of the keys in messages; those of options that are not listed start with ``train.``.
    option_keys: Mapping[str, str] = {}
    train_key = "dataloader.train"
    test_key = "dataloader.{train,test}.dataset.names=…"

    def __init__(self, cfg: Any, task: Task, world_size: int, opts: Sequence[str] = ()) -> None:
        self.cfg = cfg
        self.task = task
        self.world_size = world_size
        self.options: Options = read_options(self._option_values(), self.option_keys)
        self.device = self._resolve_device(opts)

    def _option_values(self) -> Any:
        """The values of `Options`, as nested dicts."""
        try:
            return OmegaConf.to_container(self.cfg.train, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"train: {error}") from error

    def _resolve_device(self, opts: Sequence[str]) -> str:
        device = self.options.device
        if device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            # Detectron2's default is "cuda", which is then nobody's wish.
            key = self.key("device")
            if any(opt.partition("=")[0] == key for opt in opts):
                raise ConfigError(f"{key} is {device!r}, but torch finds no GPU; use cpu or auto")
            return "cpu"
        return device

    def key(self, option: str) -> str:
        """The config's key of an option: ``"ema.decay"`` → ``"train.ema.decay"``."""
        return self.option_keys.get(option, f"train.{option}")

    def find(self, lazy: str, yaml: str) -> tuple[str, Any]:
        """The key in the config's own kind, and its value; None where the config has none.

        Args:
            lazy: key in lazy configs.
            yaml: key in yaml configs.
        """
        return lazy, OmegaConf.select(self.cfg, lazy)

    def override(self, option: str, value: Any) -> list[str]:
        """Command-line words that set an option.

        Args:
            option: such as ``"output_dir"``.
            value: a string, number or path.
        """
        text = str(value)
        if not re.fullmatch(r"[\w./+-]+", text):  # hydra would see more than a word
            text = "'" + text.replace("'", "\\'") + "'"
        return [f"{self.key(option)}={text}"]

    def batch_plan(self) -> BatchPlan | None:
        """How the processes divide the batch of a step; None if the config does not tell its size.

        Raises:
            ConfigError: they cannot share it equally.
        """
        batch_key, total = self.find(*BATCH_KEYS)
        images_per_gpu = self.options.images_per_gpu
        names = (batch_key, self.key("images_per_gpu"))
        if total is not None:
            return plan_batch(total, images_per_gpu, self.world_size, names)
        if images_per_gpu:
            raise ConfigError(f"{names[1]} ({images_per_gpu}) needs a {names[0]}, which is missing")
        return None

    def count_epochs(self) -> None:
        """Set ``max_iter`` from ``train.epochs``, ``min_iter`` and the size of the training data.

        Errors of loading the data are left to the checks.
        """
        epochs, (_, total) = self.options.epochs, self.find(*BATCH_KEYS)
        if not epochs or total is None:
            return
        try:
            dataset = build(self.cfg.dataloader.train.dataset, "dataloader.train.dataset")
            max_iter = max(1, self.options.min_iter, math.ceil(epochs * len(dataset) / total))
        except Exception:  # of whatever function makes the dataset
            return
        self.cfg.train.max_iter = max_iter
        self.options = dataclasses.replace(self.options, max_iter=max_iter)

    def dataset_names(self, split: str) -> list[str]:
        """Names of the ``"train"`` or ``"test"`` datasets; empty if a lazy config has none."""
        found: list[str] = []
        for loader in _as_list(OmegaConf.select(self.cfg, f"dataloader.{split}")):
            names = OmegaConf.select(loader, "dataset.names") or []
            found += [names] if isinstance(names, str) else [str(name) for name in names]
        return found

    def check_parts(self, training: bool) -> None:
        """Check the parts as far as possible without building them.

        Args:
            training: whether the run trains, and does not only evaluate.

        Raises:
            ConfigError: such as an argument that a call does not take.
        """
        check_targets(self.cfg)
        node = self.cfg.get("optimizer")
        if not training or not isinstance(node, DictConfig):
            return
        # What another function does with its arguments is its own business.
        target = locate_target(node)
        if inspect.isclass(target) and issubclass(target, torch.optim.Optimizer):
            names = [str(name) for name in node if name not in ("_target_", "params")]
            arguments = {name: node[name] for name in names}
            with explain_optimizer("optimizer", arguments):
                target(nn.Linear(1, 1).parameters(), **instantiate(arguments))

    def _build(self, key: str) -> Any:
        node = OmegaConf.select(self.cfg, key)
        if node is None:
            raise ConfigError(f"the config has no `{key}`, which this run needs")
        return build(node, key)

    def build_model(self, device: str | None = None) -> nn.Module:
        """The model, on the run's device; with ``"meta"``, its parameters have no values."""
        with without_values(device):
            model = self._build("model")
        return model.to(device or self.device)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the model's parameters."""
        if "optimizer" not in self.cfg:
            raise ConfigError("the config has no `optimizer`, which this run needs")
        # The copy keeps the model out of the config.
        node = copy.deepcopy(self.cfg.optimizer)
        node.params.model = model
        return build(node, "optimizer")

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """A torch learning-rate scheduler, or fvcore's multiplier for one."""
        scheduler = OmegaConf.select(self.cfg, "lr_multiplier")
        if not self.options.scale_lr.enabled or scheduler is None:
            return self._build("lr_multiplier")
        if "warmup_length" not in scheduler:
            logger.info("scale_lr: lr_multiplier has no warmup_length to scale")
            return self._build("lr_multiplier")
        scheduler = copy.deepcopy(scheduler)
        max_iter = self.options.max_iter
        scheduler.warmup_length = self._scaled_warmup(scheduler.warmup_length * max_iter) / max_iter
        return build(scheduler, "lr_multiplier")

    def _scaled_warmup(self, iterations: float) -> int:
        """The warm-up's iterations for as many images as at the reference batch, logged."""
        plan, reference = self.batch_plan(), self.options.scale_lr.reference_batch_size
        if plan is None:
            return round(iterations)
        max_iter = self.options.max_iter
        scaled = min(round(iterations * reference / plan.total), max_iter)
        logger.info(
            "scale_lr: warm-up of %d iterations × %d / %d images = %d iterations; max_iter stays "
            "%d, which is %d images (%d at the reference)",
            *(round(iterations), reference, plan.total, scaled),
            *(max_iter, max_iter * plan.total, max_iter * reference),
        )
        return scaled

    def build_train_loader(self, seed: int = 0, start: int = 0) -> Iterable[Any]:
        """The endless loader of this rank's micro-batches.

        Args:
            seed: of order and augmentations, equal on all ranks.
            start: position of the first sample, in images since the run began. Without
                ``exact_resume`` both mean nothing.
        """
        plan = self.batch_plan()
        if plan is None:
            return self._build("dataloader.train")
        target, arguments = self._train_loader_call()
        exact = target is build_train_loader or (
            self.options.exact_resume and target is build_detection_train_loader
        )
        if exact and not isinstance(arguments["dataset"], torchdata.IterableDataset):
            return self._exact_loader(arguments, plan, seed, start)
        if self.options.exact_resume:
            logger.warning(
                "The order of the data does not follow from the seed, as %s is not detectron2's of "
                "a map-style dataset: a resumed run will see other images than an uninterrupted "
                "one",
                self.train_key,
            )
        # detectron2's word for the images of one forward on all processes.
        arguments["total_batch_size"] = plan.images_per_gpu * plan.world_size
        with explain_building(self.train_key):
            return target(**arguments)

    def _train_loader_call(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The function that makes the training loader, and its arguments, which are built."""
        node = OmegaConf.select(self.cfg, "dataloader.train")
        names = [str(name) for name in node if name != "_target_"]
        return locate_target(node), {
            name: build(node[name], f"dataloader.train.{name}") for name in names
        }

    def _exact_loader(
        self, arguments: dict[str, Any], plan: BatchPlan, seed: int, start: int
    ) -> TrainLoader:
        try:
            return build_train_loader(
                **arguments,
                images_per_gpu=plan.images_per_gpu,
                run_seed=seed,
                start=start,
                skip_bad=self.options.bad_data.action == "skip",
                max_bad_share=self.options.bad_data.max_share,
            )
        except ValueError as error:
            raise ConfigError(f"training data: {error}") from error

    def evaluations(self) -> Iterator[tuple[str, Iterable[Any], DatasetEvaluator]]:
        """Dataset name, loader and evaluator of each test set."""
        tests = _as_list(OmegaConf.select(self.cfg, "dataloader.test"))
        evaluators = _as_list(OmegaConf.select(self.cfg, "dataloader.evaluator"))
        names = self.dataset_names("test")
        if len(tests) != len(evaluators):
            if evaluators:
                raise ConfigError(
                    f"dataloader.test ({len(tests)}) and dataloader.evaluator ({len(evaluators)}) "
                    "must be of equal number"
                )
            return
        for i, (test, evaluator) in enumerate(zip(tests, evaluators, strict=True)):
            if takes_argument(evaluator, "output_dir") and evaluator.get("output_dir") is None:
                evaluator.output_dir = os.path.join(self.options.output_dir, "inference")
            name = names[i] if len(names) == len(tests) else f"test[{i}]"
            # The loader first: it builds a dataset whose annotations the evaluator then opens.
            loader = build(test, "dataloader.test")
            yield name, loader, build(evaluator, "dataloader.evaluator")

    def first_test_set(self) -> tuple[str, Mapper] | None:
        """Its name, and the mapper to the model's inputs; None where there is none."""
        names = self.dataset_names("test")
        tests = _as_list(OmegaConf.select(self.cfg, "dataloader.test"))
        if not names or "mapper" not in tests[0]:
            return None
        return names[0], build(tests[0].mapper, "dataloader.test.mapper")


def without_values(device: str | None) -> AbstractContextManager[Any]:
    """A context in which a model for the device ``"meta"`` is built there, without memory."""
    return torch.device("meta") if device == "meta" else nullcontext()


def _as_list(node: Any) -> list[Any]:
    if node is None:
        return []
    return [node] if isinstance(node, DictConfig) else list(node)
