"""The training engine behind ``train_net.py``, for any task and both of detectron2's config kinds.

In the order in which a run goes through them:

* `command_line`: arguments; `run` checks and starts the processes, `main` is one of them.
* `config`, `lazy_config`, `yaml_config`: a file and overrides become a `RunConfig` with `options`.
* `checks`, `targets`, `batch`: what can be wrong, before any process is started.
* `launch`, `preemption`: processes, and the signals that stop them.
* `train`: the parts of a training and the order of its hooks; `trainer`: one step of it.
* `hooks`, `norm_hooks`, `ratio_writer`, `resume`, `buffers`: what happens after a step.
* `resumed_optimizer`, `config_record`: a resume under a changed config.
* `evaluation`, `summary`, `curves`: results.

`task` is what a project adds.
"""

from .. import known_warnings  # noqa: F401  before detectron2
from ..errors import ConfigError, RankFailedError, UserError
from .buffers import average_buffers
from .checks import check_config
from .command_line import argument_parser, main, run, run_command_line
from .config import load_config, read_config, resolve_config_file
from .evaluation import evaluate
from .hooks import BufferAverager, EvalHook, ModelEMA
from .launch import launch
from .norm_hooks import BatchAverage, SparsityRamp
from .ratio_writer import RatioWriter
from .run_config import RunConfig
from .task import Task
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
