"""Loading detectron2's lazy configs: ``model``, ``dataloader``, ``optimizer`` and so on."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError, did_you_mean
from ..recipes import config_root
from .options import default_options
from .task import Task

__all__ = ["load_lazy_config"]


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
    cfg.train = OmegaConf.merge(default_options(), cfg.get("train", {}))
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
