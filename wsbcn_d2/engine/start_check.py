"""Where a run starts from, looked at before any process is started for it."""

from __future__ import annotations

import argparse

import torch
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import CheckpointError, WSBCNCheckpointer
from ..checkpoint.comparison import compare_parameters, compare_with_checkpoint
from ..checkpoint.reading import read_checkpoint
from ..errors import ConfigError
from .options import Config, read_options
from .task import Task

__all__ = ["check_start"]


def check_start(cfg: Config, args: argparse.Namespace, task: Task | None = None) -> None:
    """Check the weights that a run starts from, evaluates or resumes; download them if need be.

    Args:
        cfg: the config.
        args: ``eval_only`` and ``resume`` are read.
        task: what is learned; `Detection` if None.

    Raises:
        ConfigError: a name, address or file that is not there or is no checkpoint, an evaluation
            without weights, or a resume in the folder of a run with another model, or of one that
            is past ``max_iter``.
    """
    options = read_options(cfg)
    lazy = isinstance(cfg, DictConfig)
    key = "train.init_checkpoint" if lazy else "MODEL.WEIGHTS"
    weights, folder = options.init_checkpoint, options.output_dir
    checkpointer = WSBCNCheckpointer(nn.Identity(), folder)
    last = checkpointer.get_checkpoint_file() if args.resume else ""
    if last:
        if not args.eval_only:
            _check_resume(cfg, last, task)
        return
    if weights:
        try:
            checkpointer.read(weights)
        except CheckpointError as error:
            raise ConfigError(f"{key}: {error}") from error
    elif args.eval_only:
        where = f", and --resume found no checkpoint in {folder}" if args.resume else ""
        raise ConfigError(
            f"--eval-only needs weights: {key} names none{where}.\n"
            f"  Name a checkpoint ({key}{'=' if lazy else ' '}path/to/model_final.pth), or "
            "evaluate the last one in the output folder with --resume"
        )


def _check_resume(cfg: Config, path: str, task: Task | None) -> None:
    from .job import build_job

    try:
        checkpoint = read_checkpoint(path, mmap=True)
    except CheckpointError:
        return  # the checkpointer goes back to an older one, or says what is wrong with all
    options = read_options(cfg)
    lazy = isinstance(cfg, DictConfig)
    done = checkpoint.get("iteration", -1) + 1
    if done > options.max_iter:
        key = "train.max_iter" if lazy else "SOLVER.MAX_ITER"
        raise ConfigError(
            f"--resume: {path} has {done} iterations behind it, and {key} is {options.max_iter}.\n"
            "  Raise it, or take another output folder"
        )
    if options.resume.other_model:
        return
    with torch.device("meta"):
        model = build_job(cfg, "meta", task).build_model()
    differences = compare_with_checkpoint(checkpoint, model)
    differences += compare_parameters(checkpoint["model"], model)
    if differences:
        allow = "train.resume.other_model=true" if lazy else "SOLVER.RESUME.OTHER_MODEL True"
        listing = "\n  ".join(differences)
        raise ConfigError(
            f"--resume: {path} is of another model than the config's:\n  {listing}\n"
            "  Take the config it was trained with, or another output folder; or, to go on with "
            f"the parameters that fit, add {allow}"
        )
