"""The recipes (lazy configs) that come with this project, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["config_file", "config_root", "get_config", "list_configs"]

_PACKAGE = Path(__file__).resolve().parent


def config_root() -> Path:
    """The folder with the recipes: inside an installed wheel, otherwise of the checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def list_configs() -> list[str]:
    """Names that `get_config` takes, without ``.py``; not the shared parts in ``common/``."""
    root = config_root()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py"))
    return sorted(name for name in names if not name.startswith("common/"))


def config_file(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: such as ``"finetune/mask_rcnn_r50_fpn_ws_gn_2x"``, with or without ``.py`` and a
            leading ``configs/``.

    Raises:
        ValueError: no such recipe; the message has the nearest names.
    """
    short = name.removeprefix("./").removeprefix("configs/").removesuffix(".py")
    path = config_root() / f"{short}.py"
    # The name of a recipe never leads out of the folder.
    if ".." not in Path(short).parts and not Path(short).is_absolute() and path.is_file():
        return path
    hint = did_you_mean(short, list_configs())
    raise ValueError(f"unknown recipe {name!r} in {config_root()}; {hint}")


def get_config(name: str) -> DictConfig:
    """Load a recipe: detectron2's ``model_zoo.get_config`` for this project.

    Registers this project's norms (`register_norms`), so that the model can be instantiated.

    Args:
        name: as in `config_file`.

    Returns:
        the lazy config (``model``, ``dataloader``, ``optimizer``, ``lr_multiplier``, ``train``),
        yours to change before ``detectron2.config.instantiate``.

    Raises:
        ValueError: no such recipe; the message has the nearest names.
    """
    path = config_file(name)
    from detectron2.config import LazyConfig

    from .modeling import register_norms

    register_norms()  # the recipe names them
    return LazyConfig.load(str(path))
