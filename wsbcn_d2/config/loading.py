"""From ``--config-file`` and overrides to a run's config."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import ConfigError, did_you_mean
from ..modeling import register_norms
from ..recipes import config_file, config_root, list_configs
from .lazy_config import load_lazy_config
from .options import Config
from .run_config import RunConfig
from .task import Task, default_task
from .yaml_config import YamlRunConfig, load_yaml_config

__all__ = ["load_config", "read_config", "resolve_config_file"]


def resolve_config_file(name: str) -> str:
    """The path of a config: a file, a recipe of this project, or one of detectron2's model zoo.

    Raises:
        ConfigError: none of them; the message says where it was looked for and what is near.
    """
    if not name:
        raise ConfigError("--config-file is missing; recipes: " + ", ".join(list_configs()))
    if os.path.isfile(name):
        if not name.endswith((".py", ".yaml", ".yml")):
            raise ConfigError(f"--config-file {name}: must end in .py, .yaml or .yml")
        return name
    try:
        return str(config_file(name))
    except ValueError:
        pass
    zoo = Path(model_zoo.__file__).parent / "configs"
    if (zoo / name).is_file():
        return str(zoo / name)

    siblings = _configs_in(Path(name).parent, "*")
    zoo_names = [path.relative_to(zoo) for path in _configs_in(zoo, "**/*")]
    ours = [f"configs/{recipe}.py" for recipe in list_configs()]
    known = map(str, [*siblings, *ours, *list_configs(), *zoo_names])
    raise ConfigError(
        f"--config-file {name!r} not found.\n"
        f"  Looked for: {os.path.abspath(name)}; a recipe in {config_root()}; "
        f"detectron2's {zoo}\n"
        "  " + did_you_mean(name, known, f"there are {len(ours)} recipes, such as {ours[0]}")
    )


def _configs_in(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob(pattern) if p.suffix in (".py", ".yaml", ".yml"))


def load_config(
    path: str, opts: Sequence[str] = (), task: Task | None = None, *, dataset: str | None = ""
) -> Config:
    """Load a config and apply overrides; registers this project's norm names.

    Args:
        path: a ``.py`` or ``.yaml`` file. A yaml with ``_target_`` keys (what a lazy run saves as
            ``config.yaml``) is a lazy config, every other one detectron2's CfgNode.
        opts: ``path.key=value`` for lazy configs, ``KEY VALUE`` pairs for CfgNodes.
        task: what is learned; `Detection` if None.
        dataset: the user's own data, in the place of the config's; None: the data that the config
            names need not be there (`Task.use_dataset`).

    Raises:
        ConfigError: an override or key that the config does not have, or the wrong kind of one.
    """
    for opt in opts:
        if opt.startswith("--"):
            raise ConfigError(f"{opt} stands behind the overrides; put it before them")
    register_norms()
    with open(path, encoding="utf-8") as file:
        lazy = path.endswith(".py") or re.search(r"\b_target_\s*:", file.read()) is not None
    if lazy:
        return load_lazy_config(path, list(opts), task or default_task(), dataset)
    return load_yaml_config(path, list(opts), task or default_task(), dataset)


def read_config(
    cfg: Config,
    task: Task | None = None,
    *,
    world_size: int | None = None,
    opts: Sequence[str] = (),
) -> RunConfig:
    """What a run needs, from a config of either kind; registers this project's norm names.

    Args:
        cfg: from `load_config`.
        task: what is learned; `Detection` if None.
        world_size: processes of the run; None for those of this one's process group.
        opts: overrides of the command line: a device among them has to be there.

    Raises:
        ConfigError: options that are not allowed.
    """
    register_norms()
    kind = YamlRunConfig if isinstance(cfg, CfgNode) else RunConfig
    return kind(cfg, task or default_task(), world_size or comm.get_world_size(), opts)
