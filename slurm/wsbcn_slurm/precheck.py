"""What is wrong with a run, found in seconds on the login node; and what it will do."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import LazyConfig
from torch import nn

from wsbcn_d2 import data  # noqa: F401  registers datasets
from wsbcn_d2.engine import (
    RunConfig,
    Task,
    check_config,
    load_config,
    read_config,
    resolve_config_file,
)
from wsbcn_d2.errors import ConfigError

from .profile import Profile

__all__ = ["Plan", "check_run"]


@dataclass(frozen=True)
class Plan:
    """A run, checked.

    Attributes:
        config: the config with its overrides, for the largest number of nodes.
        config_file: absolute path.
        opts: the overrides, with an absolute output folder.
        output_dir: absolute.
        max_iter: iterations; 0 in an evaluation.
        images: in an optimizer step; 0 where the config hides it.
        summary: lines for people.
    """

    config: RunConfig
    config_file: str
    opts: list[str]
    output_dir: Path
    max_iter: int
    images: int
    summary: list[str]

    def save_config(self, path: Path) -> None:
        """Save the resolved config."""
        if self.config.lazy:
            LazyConfig.save(self.config.cfg, str(path))
        else:
            path.write_text(self.config.cfg.dump(), encoding="utf-8")


def check_run(args: argparse.Namespace, opts: Sequence[str], profile: Profile) -> Plan:
    """Everything that can be known before the job runs.

    Args:
        args: ``script``, ``config_file``, ``resume`` and ``eval_only`` are read.
        opts: overrides.
        profile: says how many processes there will be.

    Raises:
        ConfigError: with what to put right.
    """
    path = os.path.abspath(resolve_config_file(args.config_file))
    task = _find_task(args.script)
    config = read_config(load_config(path, opts, task), task)
    folder = Path(config.options.output_dir).expanduser().absolute()
    opts = [*opts, *config.override("output_dir", folder)]
    cfg = load_config(path, opts, task)
    if not (args.resume or args.eval_only) and (folder / "last_checkpoint").exists():
        raise ConfigError(
            f"{folder} holds an earlier run's checkpoints, which a restart of this one might "
            "resume: add --resume to go on with that run, or name another "
            f"{config.key('output_dir')}"
        )
    summary: list[str] = []
    max_iter = images = 0
    for nodes in profile.node_counts:
        config = read_config(cfg, task, world_size=nodes * profile.tasks)
        check_config(config, args)
        batch = None if args.eval_only else config.batch_plan()
        if batch is not None:
            images = batch.total
            summary.append(f"Batch:      {nodes} node(s): {batch}")
    try:
        model = config.build_model("meta")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"the model cannot be built: {type(error).__name__}: {error}") from error
    if not args.eval_only:
        config.count_epochs()
        max_iter = config.options.max_iter
        summary += _describe_training(config, model)
    parameters = sum(p.numel() for p in model.parameters())
    summary.append(f"Model:      {parameters / 1e6:.1f} million parameters")
    return Plan(config, path, opts, folder, max_iter, images, summary)


def _describe_training(config: RunConfig, model: nn.Module) -> list[str]:
    max_iter, period = config.options.max_iter, config.options.checkpointer.period
    evaluations = -(-max_iter // (config.options.eval_period or max_iter))
    # Weights, and as much again for SGD's momentum.
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p for p in model.parameters() if p.requires_grad]
    size = sum(t.numel() * t.element_size() for t in tensors) / 2**20
    return [
        f"Iterations: {max_iter}, {evaluations} evaluation(s)",
        f"Checkpoints: {-(-max_iter // (period or max_iter))}, about {size:.0f} MB each",
    ]


def _find_task(script: str) -> Task | None:
    """The ``TASK`` of a script, which is what it trains; None without one."""
    if not Path(script).is_file():
        raise ConfigError(f"--script {script}: no such file")
    sys.path.insert(0, str(Path(script).resolve().parent))  # as Python does for a script
    try:
        task = runpy.run_path(script).get("TASK")
    except Exception as error:  # any Python
        raise ConfigError(f"--script {script}: {type(error).__name__}: {error}") from error
    return task if isinstance(task, Task) else None
