"""Runs from detectron2's yaml configs, whose keys are translated to those of ``train``."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine.defaults import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from omegaconf import OmegaConf
from torch import nn

from ..errors import ConfigError, did_you_mean
from ..modeling import add_wsbcn_config
from .options import default_options
from .run_config import Mapper, RunConfig, without_values
from .targets import explain_building, explain_optimizer
from .task import Task

__all__ = ["YAML_KEYS", "YamlRunConfig", "load_yaml_config"]

logger = logging.getLogger(__name__)

# The keys of `Options` in yaml configs: detectron2's own,
YAML_KEYS = {
    "output_dir": "OUTPUT_DIR",
    "init_checkpoint": "MODEL.WEIGHTS",
    "max_iter": "SOLVER.MAX_ITER",
    "eval_period": "TEST.EVAL_PERIOD",
    "checkpointer.period": "SOLVER.CHECKPOINT_PERIOD",
    "amp.enabled": "SOLVER.AMP.ENABLED",
    "device": "MODEL.DEVICE",
    "seed": "SEED",
    "cudnn_benchmark": "CUDNN_BENCHMARK",
    "sync_group_size": "MODEL.WSBCN.SYNC_GROUP_SIZE",
}
# and those that `_add_engine_config` adds, such as SOLVER.SCALE_LR.ENABLED.
_ADDED = (
    *("images_per_gpu", "scale_lr.enabled", "scale_lr.reference_batch_size", "correct_momentum"),
    *("exact_resume", "resume.new_hyperparameters", "resume.other_model", "ssn_full_at"),
    *("batch_average_iters", "stop_signals", "silence", "ema.enabled", "ema.decay"),
)
_ADDED_KEYS = {key: f"SOLVER.{key.upper()}" for key in _ADDED} | {
    "bad_data.action": "DATALOADER.BAD_DATA.ACTION",
    "bad_data.max_share": "DATALOADER.BAD_DATA.MAX_SHARE",
}
YAML_KEYS |= _ADDED_KEYS


def _add_engine_config(cfg: CfgNode) -> None:
    """Add the options that detectron2's yaml configs lack, with the defaults of lazy configs."""
    for key, yaml_key in _ADDED_KEYS.items():
        value = OmegaConf.select(default_options(), key)
        *parents, name = yaml_key.split(".")
        node = cfg
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        node[name] = value if not OmegaConf.is_list(value) else tuple(value)


def load_yaml_config(path: str, opts: list[str], task: Task, dataset: str | None) -> CfgNode:
    """Load a yaml config, as `load_config` does.

    Args:
        path: a ``.yaml`` file.
        opts: pairs of a key and its value.
        task: adds its keys, and fits the config to ``dataset``.
        dataset: the user's own data; None: none are read.
    """
    cfg = get_cfg()
    add_wsbcn_config(cfg)
    _add_engine_config(cfg)
    task.add_config(cfg)
    if any("=" in opt for opt in opts[::2]) or len(opts) % 2:
        raise ConfigError(
            f"overrides {' '.join(opts)}: a yaml config takes pairs KEY VALUE, such as "
            "SOLVER.MAX_ITER 100"
        )
    known = _keys(cfg, "")
    unknown = [key for key in opts[::2] if key not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known, "see detectron2's config reference")
        raise ConfigError(f"override {unknown[0]!r}: no such key; {hint}")
    try:
        cfg.merge_from_file(path)
        cfg.merge_from_list(task.use_dataset(cfg, opts, dataset))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid yaml: {error}") from error
    except (KeyError, ValueError, AssertionError) as error:
        message = str(error.args[0]) if error.args else str(error)
        hint = did_you_mean(message.rpartition(" ")[2], known, "")
        raise ConfigError(f"{path}: {message}; {hint}".rstrip("; ")) from error
    return cfg


def _keys(node: CfgNode, prefix: str) -> list[str]:
    found = []
    for key, value in node.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, CfgNode):
            found += _keys(value, f"{prefix}{key}.")
    return found


class YamlRunConfig(RunConfig):
    """A `RunConfig` that reads what detectron2's ``tools/train_net.py`` reads."""

    lazy = False
    option_keys = YAML_KEYS
    train_key = "DATALOADER"
    test_key = "DATASETS.TRAIN, TEST"

    def __init__(self, cfg: CfgNode, task: Task, world_size: int, opts: Sequence[str] = ()) -> None:
        cfg = DefaultTrainer.auto_scale_workers(cfg, world_size).clone()
        super().__init__(cfg, task, world_size, opts)
        cfg.defrost()
        cfg.MODEL.DEVICE = self.device
        cfg.freeze()
        for key, enabled in (
            ("TEST.AUG", cfg.TEST.AUG.ENABLED),
            ("TEST.PRECISE_BN", cfg.TEST.PRECISE_BN.ENABLED),
        ):
            if enabled:
                logger.warning("%s.ENABLED is set, but train_net.py does not do that", key)

    def _option_values(self) -> Any:
        values = copy.deepcopy(default_options())
        # detectron2's yaml configs keep every checkpoint.
        values.checkpointer.max_to_keep = None
        for key, yaml_key in YAML_KEYS.items():
            value = reduce(getattr, yaml_key.split("."), self.cfg)
            OmegaConf.update(values, key, value, merge=False)
        # None as yacs lets it be replaced by a number and by "node".
        values.sync_group_size = values.sync_group_size or 0
        return OmegaConf.to_container(values)

    def find(self, lazy: str, yaml: str) -> tuple[str, Any]:
        return yaml, reduce(lambda node, name: node.get(name), yaml.split("."), self.cfg)

    def override(self, option: str, value: Any) -> list[str]:
        return [self.key(option), str(value)]

    def dataset_names(self, split: str) -> list[str]:
        return list(self.cfg.DATASETS.TRAIN if split == "train" else self.cfg.DATASETS.TEST)

    def check_parts(self, training: bool) -> None:
        # What a task's own function does with a model is its own business.
        if training and type(self.task).build_optimizer is Task.build_optimizer:
            with explain_optimizer("SOLVER", self.cfg.SOLVER):
                self.task.build_optimizer(self.cfg, nn.Linear(1, 1))

    def build_model(self, device: str | None = None) -> nn.Module:
        cfg = self.cfg
        if device is not None:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.DEVICE = device
        with explain_building("MODEL"), without_values(device):
            return self.task.build_model(cfg)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        with explain_building("SOLVER"):
            return self.task.build_optimizer(self.cfg, model)

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        cfg = self.cfg.clone()
        if self.options.scale_lr.enabled:
            cfg.defrost()
            cfg.SOLVER.WARMUP_ITERS = self._scaled_warmup(cfg.SOLVER.WARMUP_ITERS)
        with explain_building("SOLVER"):
            return self.task.build_lr_scheduler(cfg, optimizer)

    def _train_loader_call(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        with explain_building(self.train_key):
            return build_detection_train_loader, self.task.train_loader_arguments(self.cfg)

    def evaluations(self) -> Iterator[tuple[str, Iterable[Any], DatasetEvaluator]]:
        folder = os.path.join(self.options.output_dir, "inference")
        for name in self.cfg.DATASETS.TEST:
            with explain_building(self.train_key):
                loader = self.task.build_test_loader(self.cfg, name)
            yield name, loader, self.task.build_evaluator(self.cfg, name, folder)

    def first_test_set(self) -> tuple[str, Mapper] | None:
        if not self.cfg.DATASETS.TEST:
            return None
        return self.cfg.DATASETS.TEST[0], DatasetMapper(self.cfg, is_train=False)
