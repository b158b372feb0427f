"""Checks of a run, before any process is started for it."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from ..checkpoint import CheckpointError, WSBCNCheckpointer
from ..checkpoint.comparison import compare_parameters, compare_with_checkpoint
from ..checkpoint.reading import read_checkpoint
from ..config import RunConfig
from ..errors import ConfigError, did_you_mean
from ..norms.sync import check_group_size

__all__ = ["check_config", "check_start"]

# Metadata of detectron2's builtin datasets that are paths.
_DATASET_PATHS = (
    "json_file", "image_root", "panoptic_root", "panoptic_json", "dirname", "image_dir", "gt_dir",
)  # fmt: skip


def check_config(config: RunConfig, args: argparse.Namespace) -> None:
    """Check a run's config, the files that it names, and its output folder.

    Args:
        config: of the run. Its options have been checked by `read_config`.
        args: ``eval_only`` and ``resume`` are read.

    Raises:
        ConfigError: an argument that a call does not take, an output folder that cannot be written,
            datasets that are not registered or not there, weights that the run cannot start from,
            or a batch or groups of norms that the processes cannot share equally.
    """
    training = not args.eval_only
    config.check_parts(training)
    _check_output_folder(config)
    for split in ["train", "test"] if training else ["test"]:
        for name in config.dataset_names(split):
            _check_dataset(name, config.test_key)
    check_start(config, args)
    size = config.options.sync_group_size
    if training:
        config.batch_plan()
    if training and isinstance(size, int):
        try:
            check_group_size(size, config.world_size)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _check_output_folder(config: RunConfig) -> None:
    folder = Path(config.options.output_dir).expanduser().absolute()
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(
            f"{config.key('output_dir')}: the output folder {folder} cannot be written: "
            f"{existing}: {error.strerror}"
        ) from error


def _check_dataset(name: str, key: str) -> None:
    if name not in DatasetCatalog:
        hint = did_you_mean(name, DatasetCatalog.list(), "register it in the config file")
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
                f"  or name another dataset: {key}."
            )


def check_start(config: RunConfig, args: argparse.Namespace) -> None:
    """Check the weights that a run starts from, evaluates or resumes; download them if need be.

    Args:
        config: of the run.
        args: ``eval_only`` and ``resume`` are read.

    Raises:
        ConfigError: a name, address or file that is not there or is no checkpoint, an evaluation
            without weights, or a resume in the folder of a run with another model, or of one that
            is past ``max_iter``.
    """
    weights, folder = config.options.init_checkpoint, config.options.output_dir
    checkpointer = WSBCNCheckpointer(nn.Identity(), folder)
    last = checkpointer.get_checkpoint_file() if args.resume else ""
    key = config.key("init_checkpoint")
    if last:
        if not args.eval_only:
            _check_resume(config, last)
    elif weights:
        try:
            checkpointer.read(weights)
        except CheckpointError as error:
            raise ConfigError(f"{key}: {error}") from error
    elif args.eval_only:
        where = f", and --resume found no checkpoint in {folder}" if args.resume else ""
        words = " ".join(config.override("init_checkpoint", "path/to/model_final.pth"))
        raise ConfigError(
            f"--eval-only needs weights: {key} names none{where}.\n"
            f"  Name a checkpoint ({words}), or evaluate the last one in the output folder with "
            "--resume"
        )


def _check_resume(config: RunConfig, path: str) -> None:
    try:
        checkpoint = read_checkpoint(path, mmap=True)
    except CheckpointError:
        return  # the checkpointer goes back to an older one, or says what is wrong with all
    done, max_iter = checkpoint.get("iteration", -1) + 1, config.options.max_iter
    if done > max_iter:
        raise ConfigError(
            f"--resume: {path} has {done} iterations behind it, and {config.key('max_iter')} is "
            f"{max_iter}.\n  Raise it, or take another output folder"
        )
    if config.options.resume.other_model:
        return
    model = config.build_model("meta")
    differences = compare_with_checkpoint(checkpoint, model)
    differences += compare_parameters(checkpoint["model"], model)
    if differences:
        allow = " ".join(config.override("resume.other_model", True))
        listing = "\n  ".join(differences)
        raise ConfigError(
            f"--resume: {path} is of another model than the config's:\n  {listing}\n"
            "  Take the config it was trained with, or another output folder; or, to go on with "
            f"the parameters that fit, add {allow}"
        )
