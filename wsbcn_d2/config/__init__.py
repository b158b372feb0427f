"""A run before it is started: its config, the options in it, and its task.

* `loading`: ``--config-file`` and overrides become a config, and that a `RunConfig`.
* `lazy_config`, `yaml_config`: detectron2's two kinds; `targets`: the calls in the first.
* `options`: the keys of ``train``; `batch`: how the processes share the images of a step.
* `task`: what a project adds to the engine.
* `record`: a config as text, to be compared with a checkpoint's.
"""

from .. import known_warnings  # noqa: F401  before detectron2
from .batch import BatchPlan
from .loading import load_config, read_config, resolve_config_file
from .options import Config, Options
from .run_config import RunConfig
from .task import Task

__all__ = [
    "BatchPlan",
    "Config",
    "Options",
    "RunConfig",
    "Task",
    "load_config",
    "read_config",
    "resolve_config_file",
]
