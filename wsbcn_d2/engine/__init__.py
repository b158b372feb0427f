"""The training engine behind ``train_net.py``, for any task and both of detectron2's config kinds.

In the order in which a run goes through them:

* `command_line`: arguments; `run` checks and starts the processes, `main` is one of them.
* `launch`, `preemption`: processes, and the signals that stop them.
* `train`: the parts of a training and the order of its hooks; `trainer`: one step of it.
* `hooks`, `norm_hooks`, `ratio_writer`, `resume`, `buffers`: what happens after a step.
* `resumed_optimizer`: a resume under a changed config.
* `evaluation`: a run that only evaluates.

What is to be run comes from `wsbcn_d2.config`, what is looked at before from `wsbcn_d2.checks`, and
what a run leaves for people to read from `wsbcn_d2.analysis`.
"""

from .. import known_warnings  # noqa: F401  before detectron2
from ..checks import check_config
from ..config import RunConfig, Task, load_config, read_config, resolve_config_file
from ..errors import ConfigError, RankFailedError, UserError
from .buffers import average_buffers
from .command_line import argument_parser, main, run, run_command_line
from .evaluation import evaluate
from .hooks import BufferAverager, EvalHook, ModelEMA
from .launch import launch
from .norm_hooks import BatchAverage, SparsityRamp
from .ratio_writer import RatioWriter
from .train import train
from .trainer import Trainer

__all__ = [
    "BatchAverage",
    "BufferAverager",
    "ConfigError",
    "EvalHook",
    "ModelEMA",
    "RankFailedError",
    "RatioWriter",
    "RunConfig",
    "SparsityRamp",
    "Task",
    "Trainer",
    "UserError",
    "argument_parser",
    "average_buffers",
    "check_config",
    "evaluate",
    "launch",
    "load_config",
    "main",
    "read_config",
    "resolve_config_file",
    "run",
    "run_command_line",
    "train",
]
