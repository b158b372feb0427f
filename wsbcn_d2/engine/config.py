"""From ``--config-file`` and overrides to a checked config, of either of detectron2's kinds."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine.defaults import DefaultTrainer
from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError
from ..norms.sync import check_group_size
from ..recipes import config_file, config_root, get_config, list_configs
from .batch import BatchPlan, plan_batch
from .options import Config, Options, add_engine_config, did_you_mean, read_options
from .own_data import add_data_config, use_own_data
from .start_check import check_start
from .targets import check_optimizer, check_targets
from .task import Task

__all__ = [
    "Config",
    "ConfigError",
    "batch_plan",
    "check_arguments",
    "check_config",
    "check_output_folder",
    "dataset_names",
    "is_lazy",
    "load_config",
    "resolve_config_file",
    "resolve_device",
]


# Metadata of detectron2's builtin datasets.
_DATASET_PATHS = (
    "json_file", "image_root", "panoptic_root", "panoptic_json", "dirname", "image_dir", "gt_dir",
)  # fmt: skip


def is_lazy(cfg: Config) -> bool:
    """Whether ``cfg`` is a lazy config (otherwise a yaml CfgNode)."""
    return not isinstance(cfg, CfgNode)


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

    parent = Path(name).parent
    siblings = [str(path) for path in _configs_in(parent, "*")]
    zoo_names = [str(path.relative_to(zoo)) for path in _configs_in(zoo, "**/*")]
    ours = [f"configs/{recipe}.py" for recipe in list_configs()]
    near = _nearest(name, [*siblings, *ours, *list_configs(), *zoo_names])
    raise ConfigError(
        f"--config-file {name!r} not found.\n"
        f"  Looked for: {os.path.abspath(name)}; a recipe in {config_root()}; "
        f"detectron2's {zoo}\n"
        + (f"  Did you mean: {', '.join(near)}" if near else f"  Recipes: {', '.join(ours)}")
    )


def _configs_in(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob(pattern) if p.suffix in (".py", ".yaml", ".yml"))


def _nearest(name: str, known: Iterable[str], n: int = 4) -> list[str]:
    return difflib.get_close_matches(name, list(dict.fromkeys(known)), n=n, cutoff=0.5)


def load_config(
    path: str, opts: Sequence[str] = (), task: Task | None = None, *, dataset: str = ""
) -> Config:
    """Load a config and apply overrides.

    Args:
        path: a ``.py`` or ``.yaml`` file. A yaml with ``_target_`` keys (what a lazy run saves as
            ``config.yaml``) is a lazy config, every other one detectron2's CfgNode.
        opts: ``path.key=value`` for lazy configs, ``KEY VALUE`` pairs for CfgNodes.
        task: adds its keys to detectron2's default yaml config.
        dataset: the user's own data, in the place of the config's (`use_own_data`).

    Raises:
        ConfigError: an override or key that the config does not have, or the wrong kind of one.
    """
    for opt in opts:
        if opt.startswith("--"):
            raise ConfigError(f"{opt} stands behind the overrides; put it before them")
    with open(path, encoding="utf-8") as file:
        lazy = path.endswith(".py") or re.search(r"\b_target_\s*:", file.read()) is not None
    if lazy:
        return _load_lazy(path, list(opts), dataset)
    return _load_yaml(path, list(opts), task or Task(), dataset)


def _load_lazy(path: str, opts: list[str], dataset: str) -> DictConfig:
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
    opts = use_own_data(cfg, opts, dataset)
    for opt in opts:
        _check_lazy_key(cfg, opt.partition("=")[0].lstrip("+"), path)
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


def _check_lazy_key(cfg: DictConfig, key: str, path: str) -> None:
    # omegaconf would accept a new one, and nobody would ever read it.
    first = key.partition(".")[0]
    if first not in cfg:
        hint = did_you_mean(first, map(str, cfg))
        raise ConfigError(f"override {key!r}: no such key in {path}; {hint}")


def _keys(node: Any, prefix: str) -> list[str]:
    found = []
    for key in node:
        found.append(f"{prefix}{key}")
        value = node[key]
        if isinstance(value, (DictConfig, CfgNode)):
            found += _keys(value, f"{prefix}{key}.")
    return found


def _load_yaml(path: str, opts: list[str], task: Task, dataset: str) -> CfgNode:
    from ..modeling import add_wsbcn_config

    cfg = get_cfg()
    add_wsbcn_config(cfg)
    add_engine_config(cfg)
    task.add_config(cfg)
    add_data_config(cfg)
    if any("=" in opt for opt in opts[::2]) or len(opts) % 2:
        raise ConfigError(
            f"overrides {' '.join(opts)}: a yaml config takes pairs KEY VALUE, such as "
            "SOLVER.MAX_ITER 100"
        )
    known = _keys(cfg, "")
    unknown = [key for key in opts[::2] if key not in known]
    if unknown:
        near = _nearest(unknown[0], known)
        raise ConfigError(f"override {unknown[0]!r}: no such key; nearest: {', '.join(near)}")
    try:
        cfg.merge_from_file(path)
        cfg.merge_from_list(use_own_data(cfg, opts, dataset))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid yaml: {error}") from error
    except (KeyError, ValueError, AssertionError) as error:
        message = str(error.args[0]) if error.args else str(error)
        near = _nearest(message.rpartition(" ")[2], known)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ConfigError(f"{path}: {message}{hint}") from error
    return cfg


def resolve_device(options: Options, opts: Sequence[str] = ()) -> str:
    """The device that a run uses: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    ``"auto"`` is CUDA where there is a GPU. Without one, a config's ``"cuda"`` (detectron2's
    default) means the CPU; ``"cuda"`` among the overrides was asked for, and is an error.

    Raises:
        ConfigError: no GPU for the device in the overrides.
    """
    device = options.device
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        for opt in opts:
            name = opt.partition("=")[0]
            if name in ("train.device", "MODEL.DEVICE"):
                raise ConfigError(f"{name} is {device!r}, but torch finds no GPU; use cpu or auto")
        return "cpu"
    return device


def dataset_names(cfg: Config, split: str) -> list[str]:
    """Names of the ``"train"`` or ``"test"`` datasets; none where a lazy config hides them."""
    if not is_lazy(cfg):
        return list(cfg.DATASETS.TRAIN if split == "train" else cfg.DATASETS.TEST)
    loaders = OmegaConf.select(cfg, f"dataloader.{split}")
    found: list[str] = []
    for loader in [loaders] if isinstance(loaders, DictConfig) else loaders or []:
        names = OmegaConf.select(loader, "dataset.names") or []
        found += [names] if isinstance(names, str) else [str(name) for name in names]
    return found


def check_arguments(args: argparse.Namespace) -> None:
    """Check the numbers of processes and machines on the command line.

    Raises:
        ConfigError: one of them is out of range.
    """
    for name, value, least in (
        ("--num-gpus", args.num_gpus, 1),
        ("--num-machines", args.num_machines, 1),
        ("--machine-rank", args.machine_rank, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}, but must be an integer of at least {least}")
    if args.machine_rank >= args.num_machines:
        raise ConfigError(
            f"--machine-rank is {args.machine_rank}, but must be below --num-machines "
            f"({args.num_machines})"
        )


def check_output_folder(cfg: Config) -> None:
    """Find out whether the output folder can be written, or made, without making it.

    Raises:
        ConfigError: it cannot.
    """
    key = "train.output_dir" if is_lazy(cfg) else "OUTPUT_DIR"
    folder = Path(read_options(cfg).output_dir).expanduser().absolute()
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(
            f"{key}: the output folder {folder} cannot be written: {existing}: {error.strerror}"
        ) from error


def check_config(
    cfg: Config, args: argparse.Namespace, world_size: int, task: Task | None = None
) -> None:
    """Find what is wrong with a run before any process is started for it.

    Args:
        cfg: from `load_config`.
        args: ``eval_only`` and ``resume`` are read.
        world_size: how many processes there will be.
        task: what is learned; `Detection` if None.

    Raises:
        ConfigError: an argument that a call does not take, an option of the wrong type or range, an
            output folder that cannot be written, datasets that are not registered or not there,
            weights that the run cannot start from, or a batch or groups of norms that the processes
            cannot share equally.
    """
    options = read_options(cfg)
    if isinstance(cfg, DictConfig):
        check_targets(cfg)
    check_output_folder(cfg)
    for split in ["test"] if args.eval_only else ["train", "test"]:
        for name in dataset_names(cfg, split):
            _check_dataset(name)
    check_start(cfg, args, task)
    if not args.eval_only:
        check_optimizer(cfg)
        batch_plan(cfg, world_size)
        if isinstance(options.sync_group_size, int):
            try:
                check_group_size(options.sync_group_size, world_size)
            except ValueError as error:
                raise ConfigError(str(error)) from None


def batch_plan(cfg: Config, world_size: int) -> BatchPlan | None:
    """How the processes carry a step's batch out; None where a lazy config hides its batch.

    Raises:
        ConfigError: they cannot share it equally.
    """
    if is_lazy(cfg):
        names = ("dataloader.train.total_batch_size", "train.images_per_gpu")
        total, images_per_gpu = OmegaConf.select(cfg, names[0]), cfg.train.images_per_gpu
    else:
        names = ("SOLVER.IMS_PER_BATCH", "SOLVER.IMAGES_PER_GPU")
        total = DefaultTrainer.auto_scale_workers(cfg, world_size).SOLVER.IMS_PER_BATCH
        images_per_gpu = cfg.SOLVER.IMAGES_PER_GPU
    if total is not None:
        return plan_batch(total, images_per_gpu, world_size, names)
    if images_per_gpu:
        raise ConfigError(f"{names[1]} ({images_per_gpu}) needs a {names[0]}, which is not there")
    return None


def _check_dataset(name: str) -> None:
    if name not in DatasetCatalog:
        near = _nearest(name, DatasetCatalog.list())
        hint = f"nearest: {', '.join(near)}" if near else "register it in the config file"
        raise ConfigError(f"dataset {name!r} is not registered with detectron2; {hint}")
    # detectron2's builtin datasets, which it expects in one folder. Others know their own place,
    # and may be made when they are loaded.
    setting = os.environ.get("DETECTRON2_DATASETS")
    root = os.path.abspath(os.path.expanduser(setting or "datasets")) + os.sep
    metadata = MetadataCatalog.get(name)
    for what in _DATASET_PATHS:
        path = os.path.abspath(str(metadata.get(what, "")))
        if path.startswith(root) and not os.path.exists(path):
            value = "not set, so datasets/ was taken" if setting is None else setting
            raise ConfigError(
                f"dataset {name!r} is not there: no {path}\n"
                f"  DETECTRON2_DATASETS is {value} (in {os.getcwd()}).\n"
                "  Set it to the folder that holds your datasets in detectron2's layout, for COCO "
                "<folder>/coco/annotations and <folder>/coco/train2017, val2017;\n"
                "  or name another dataset: "
                "dataloader.{train,test}.dataset.names=… (lazy), DATASETS.TRAIN, TEST (yaml)."
            )
