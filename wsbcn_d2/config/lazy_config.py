"""Runs from detectron2's lazy configs: ``model``, ``dataloader``, ``optimizer`` and so on."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import math
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.utils.data as torchdata
from detectron2.config import LazyConfig, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..data.train_loader import build_train_loader
from ..errors import ConfigError, did_you_mean
from ..recipes import config_root, get_config
from .run_config import Mapper, RunConfig, without_values
from .targets import (
    build,
    check_targets,
    explain_building,
    explain_optimizer,
    locate_target,
    takes_argument,
)
from .task import Task

__all__ = ["LazyRunConfig", "load_lazy_config"]

logger = logging.getLogger(__name__)


def load_lazy_config(path: str, opts: list[str], task: Task, dataset: str | None) -> DictConfig:
    """Load a lazy config, as `load_config` does.

    Args:
        path: a ``.py`` or ``.yaml`` file.
        opts: ``path.key=value`` each.
        task: task that adapts the config to ``dataset``.
        dataset: the user's own data; None: none are read.
    """
    try:
        cfg = LazyConfig.load(path)
    except Exception as error:  # a config is any Python
        raise ConfigError(f"{path}: {_describe_load_error(error, path)}") from error
    if "model" not in cfg:
        raise ConfigError(f"{path}: no `model`; found: {', '.join(map(str, cfg)) or 'nothing'}")
    # A config written for detectron2's own script lacks the options that only this project has.
    defaults = get_config("common/train").train
    cfg.train = OmegaConf.merge(defaults, cfg.get("train", {}))
    for opt in opts:
        if "=" not in opt:
            raise ConfigError(
                f"override {opt!r}: a lazy config takes path.key=value, such as train.max_iter=100"
            )
    opts = task.use_dataset(cfg, opts, dataset)
    for opt in opts:
        key = opt.partition("=")[0].lstrip("+")
        # omegaconf would accept a new one, and nobody would ever read it.
        first = key.partition(".")[0]
        if first not in cfg:
            hint = did_you_mean(first, map(str, cfg))
            raise ConfigError(f"override {key!r}: no such key in {path}; {hint}")
    try:
        return LazyConfig.apply_overrides(cfg, opts)
    except Exception as error:  # hydra's and omegaconf's have no common base below it
        raise ConfigError(f"overrides {' '.join(opts)}: {error}") from error


def _describe_load_error(error: BaseException, path: str) -> str:
    """What is wrong in a config's Python code, and where: in it, or in a file that it imports."""
    syntax = error.__cause__  # detectron2's ImportError names the file of a syntax error
    if isinstance(syntax, SyntaxError):
        return f"{error} Line {syntax.lineno}: {syntax.msg}: {(syntax.text or '').strip()}"
    message = f"{type(error).__name__}: {error}"
    folder = str(Path(path).resolve().parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename).startswith((folder, str(config_root())))
    ]
    if not frames:
        return message
    last = frames[-1]
    return f"{message}\n  in {last.filename}, line {last.lineno}: {last.line}"


class LazyRunConfig(RunConfig):
    """A `RunConfig` that reads what detectron2's ``lazyconfig_train_net.py`` reads."""

    lazy = True
    batch_key = "dataloader.train.total_batch_size"
    test_key = "dataloader.{train,test}.dataset.names=…"
    optimizer_key = "optimizer"

    def _option_values(self) -> Any:
        try:
            return OmegaConf.to_container(self.cfg.train, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"train: {error}") from error

    def override(self, option: str, value: Any) -> list[str]:
        return [f"{self.key(option)}={_quoted(value)}"]

    def _total_batch_size(self) -> int | None:
        return OmegaConf.select(self.cfg, self.batch_key)

    def count_epochs(self) -> None:
        total, epochs = self._total_batch_size(), self.options.epochs
        if not epochs or total is None:
            return
        try:
            dataset = build(self.cfg.dataloader.train.dataset, "dataloader.train.dataset")
            max_iter = max(1, math.ceil(epochs * len(dataset) / total))
        except Exception:  # of whatever function makes the dataset
            return
        self.cfg.train.max_iter = max_iter
        self.options = dataclasses.replace(self.options, max_iter=max_iter)

    def dataset_names(self, split: str) -> list[str]:
        found: list[str] = []
        for loader in _as_list(OmegaConf.select(self.cfg, f"dataloader.{split}")):
            names = OmegaConf.select(loader, "dataset.names") or []
            found += [names] if isinstance(names, str) else [str(name) for name in names]
        return found

    def check_parts(self, training: bool) -> None:
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
        with without_values(device):
            model = self._build("model")
        return model.to(device or self.device)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if "optimizer" not in self.cfg:
            raise ConfigError("the config has no `optimizer`, which this run needs")
        # The copy keeps the model out of the config.
        node = copy.deepcopy(self.cfg.optimizer)
        node.params.model = model
        return build(node, "optimizer")

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
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

    def build_train_loader(self, seed: int = 0, start: int = 0) -> Iterable[Any]:
        name = "dataloader.train"
        node = OmegaConf.select(self.cfg, name)
        plan = self.batch_plan()
        if node is None or plan is None:
            return self._build(name)
        arguments = {key: node[key] for key in node if key != "_target_"}
        target = locate_target(node)
        exact = self.options.exact_resume and target is build_detection_train_loader
        if exact or target is build_train_loader:
            arguments = {key: build(value, f"{name}.{key}") for key, value in arguments.items()}
            if not isinstance(arguments["dataset"], torchdata.IterableDataset):
                return self._exact_loader(arguments, seed, start)
        if self.options.exact_resume:
            self._warn_inexact("dataloader.train is not detectron2's of a map-style dataset")
        # detectron2's word for the images of one forward on all processes.
        arguments["total_batch_size"] = plan.images_per_gpu * plan.world_size
        with explain_building(name, node):
            return target(**{key: instantiate(value) for key, value in arguments.items()})

    def evaluations(self) -> Iterator[tuple[str, Iterable[Any], DatasetEvaluator]]:
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
        names = self.dataset_names("test")
        tests = _as_list(OmegaConf.select(self.cfg, "dataloader.test"))
        if not names or "mapper" not in tests[0]:
            return None
        return names[0], build(tests[0].mapper, "dataloader.test.mapper")


def _quoted(value: Any) -> str:
    """In quotes where hydra would see more than a word."""
    text = str(value)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", "\\'") + "'"


def _as_list(node: Any) -> list[Any]:
    if node is None:
        return []
    return [node] if isinstance(node, DictConfig) else list(node)
