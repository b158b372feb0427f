"""Where a run starts from, looked at before any process is started for it."""

from __future__ import annotations

import argparse
import difflib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import CheckpointError, WSBCNCheckpointer
from ..checkpoint.catalog import CATALOG
from ..checkpoint.norm_kinds import compare_norms
from ..checkpoint.reading import read_checkpoint
from ..errors import ConfigError
from .options import Config, read_options

__all__ = ["check_start", "read_structure"]


def check_start(cfg: Config, args: argparse.Namespace) -> None:
    """Check the weights that a run starts from, evaluates or resumes.

    Raises:
        ConfigError: an unknown name, a file that is not there or is no checkpoint, an evaluation
            without weights, or a resume in the folder of a run with another model, or of one that
            is past ``max_iter``.
    """
    options = read_options(cfg)
    lazy = isinstance(cfg, DictConfig)
    key = "train.init_checkpoint" if lazy else "MODEL.WEIGHTS"
    weights, folder = options.init_checkpoint, options.output_dir
    last = WSBCNCheckpointer(nn.Identity(), folder).get_checkpoint_file() if args.resume else ""
    if last:
        if not args.eval_only:
            _check_resume(cfg, last)
        return
    if weights:
        _check_weights(key, weights)
    elif args.eval_only:
        where = f", and --resume found no checkpoint in {folder}" if args.resume else ""
        raise ConfigError(
            f"--eval-only needs weights: {key} names none{where}.\n"
            f"  Name a checkpoint ({key}{'=' if lazy else ' '}path/to/model_final.pth), or "
            "evaluate the last one in the output folder with --resume"
        )


def _check_weights(key: str, weights: str) -> None:
    scheme, _, name = weights.partition("://")
    if scheme == "wsbcn" and name not in CATALOG:
        near = difflib.get_close_matches(name, CATALOG, n=3, cutoff=0.4) or sorted(CATALOG)
        raise ConfigError(
            f"{key}: there are no weights wsbcn://{name}; nearest: {', '.join(near)} "
            "(all of them: docs/weights.md)"
        )
    path = weights.partition("?")[0]
    if "://" in path:
        return
    if os.path.isdir(path):
        raise ConfigError(f"{key}: {path} is a folder; name a checkpoint file in it")
    if not os.path.isfile(path):
        raise ConfigError(f"{key}: no file {weights} (looked for {os.path.abspath(path)})")
    try:
        read_structure(path)
    except CheckpointError as error:
        raise ConfigError(f"{key}: {error}") from error


def read_structure(path: str) -> Any:
    """What a checkpoint file holds, its tensors without their values where the format allows it.

    Raises:
        CheckpointError: it is damaged, no checkpoint, or holds objects other than tensors and
            plain data, which is not read: it could run any code.
    """
    if Path(path).suffix in (".pkl", ".safetensors"):
        try:
            return read_checkpoint(path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    size = os.path.getsize(path)
    # The format before torch 1.6 is no archive, and cannot be mapped.
    mmap = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="meta", weights_only=True, mmap=mmap)
    except Exception as error:  # of many kinds, depending on the bytes
        reason = _explain(path, error)
        raise CheckpointError(f"{path} ({size:,} bytes) {reason}") from error


def _explain(path: str, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            return (
                "holds other objects than tensors and plain data; it was not read, as that could "
                "run any code: save its state_dict alone"
            )
        return "is truncated or damaged: get it anew, or name another checkpoint"
    if start[:1] == b"\x80":
        return (
            "is a pickle of objects and no checkpoint of torch's; it was not read, as that could "
            "run any code"
        )
    looks = start.decode("utf-8", errors="replace").split("\n")[0][:40]
    return f"is no checkpoint: it starts with {looks!r}. Was a page saved in the file's place?"


def _check_resume(cfg: Config, path: str) -> None:
    from .job import build_job

    try:
        checkpoint = read_structure(path)
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
        model = build_job(cfg, "meta").build_model()
    differences = compare_norms(checkpoint["model"], checkpoint.get("norms"), model)
    differences += _compare_shapes(checkpoint["model"], model.state_dict())
    if differences:
        allow = "train.resume.other_model=true" if lazy else "SOLVER.RESUME.OTHER_MODEL True"
        listing = "\n  ".join(differences)
        raise ConfigError(
            f"--resume: {path} is of another model than the config's:\n  {listing}\n"
            "  Take the config it was trained with, or another output folder; or, to go on with "
            f"the parameters that fit, add {allow}"
        )


def _compare_shapes(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What differs in names and shapes, in a line each for the first few of them."""
    lines = []
    for text, names in (
        ("only in the checkpoint", [name for name in theirs if name not in ours]),
        ("only in the model", [name for name in ours if name not in theirs]),
    ):
        if names:
            lines.append(f"{len(names)} tensor(s) {text}, such as {names[0]}")
    other = [n for n in theirs if n in ours and theirs[n].shape != ours[n].shape]
    if other:
        name = other[0]
        lines.append(
            f"{len(other)} tensor(s) of another shape, such as {name}: {tuple(theirs[name].shape)} "
            f"in the checkpoint, {tuple(ours[name].shape)} in the model"
        )
    return lines
