"""The training engine behind ``train_net.py``, for both of detectron2's config kinds."""

from .. import known_warnings  # noqa: F401  before detectron2
from ..errors import ConfigError, RankFailedError, UserError
from .buffers import average_buffers
from .config import check_config, load_config, resolve_config_file, resolve_device
from .detection import Detection
from .hooks import BufferAverager, EvalHook, ModelEMA
from .job import Job, LazyJob, YamlJob, build_job
from .launch import launch
from .norm_hooks import BatchAverage, SparsityRamp
from .ratio_writer import RatioWriter
from .task import Task
from .train import argument_parser, evaluate, main, run, run_command_line, train
from .trainer import Trainer

__all__ = [
    "BatchAverage",
    "BufferAverager",
    "ConfigError",
    "Detection",
    "EvalHook",
    "Job",
    "LazyJob",
    "ModelEMA",
    "RankFailedError",
    "RatioWriter",
    "SparsityRamp",
    "Task",
    "Trainer",
    "UserError",
    "YamlJob",
    "argument_parser",
    "average_buffers",
    "build_job",
    "check_config",
    "evaluate",
    "launch",
    "load_config",
    "main",
    "resolve_config_file",
    "resolve_device",
    "run",
    "run_command_line",
    "train",
]
