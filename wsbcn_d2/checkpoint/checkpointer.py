"""detectron2's checkpointer, with comparison of norms and atomic writing."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from .backbone_names import move_backbone
from .comparison import compare_with_checkpoint, describe_minibatch, describe_model, shown
from .files import disk_error, find_damage, replacing, root_os_error
from .folder import numbered_checkpoints, resumable_checkpoints, tagged_checkpoint
from .inference_settings import take_inference_settings
from .reading import CheckpointError, check_is_file, read_checkpoint

__all__ = ["WSBCNCheckpointer"]

logger = logging.getLogger(__name__)

_CONVERTS = "`tools/convert_weights.py IN OUT.pth` converts published ResNets and detectors"


class WSBCNCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` for models whose norms and weight standardization matter.

    * It saves what `describe_model` says of the model, under ``"norms"``. On loading, a difference
      to the model (`compare_with_checkpoint`) is a warning that names both sides.
    * A backbone is loaded wherever the model has it (`move_backbone`).
    * Files are read by `read_checkpoint`, which runs no code of theirs.
    * Files appear whole or not at all, whatever kills the process or fills the disk, and weights
      that are not finite are not saved.
    * A run resumes from the newest checkpoint that is whole. Damaged ones are reported.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        images_per_process: int | None = None,
        config: Mapping[str, str] | None = None,
        complete: bool = False,
        **kwargs: Any,
    ) -> None:
        """As detectron2's.

        Args:
            images_per_process: images that a process sees at a time in this training, saved for the
                check of one that starts from it (``pretraining-minibatch``); None saves none.
            config: the run's options by key, saved under ``"config"``; None saves none.
            complete: for an evaluation: refuse checkpoints that lack a parameter of the model, and
                give the model what a published detector presumes (`take_inference_settings`).
        """
        super().__init__(model, save_dir, **kwargs)
        self._path = ""
        self._images_per_process = images_per_process
        self._config = config
        self._complete = complete
        self._resumed = ""
        self._found: tuple[str, Any] = ("", {})

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model, the checkpointables and ``kwargs`` as ``<name>.pth``.

        Raises:
            FloatingPointError: a parameter or running statistic is not finite; nothing is written.
            OSError: the disk is full, for example; the checkpoints before are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        last = self.get_checkpoint_file()
        _check_finite(self.model, last)
        data = {"model": self.model.state_dict(), "norms": describe_model(self.model)}
        if self._images_per_process is not None:
            minibatch = describe_minibatch(self.model, self._images_per_process)
            data["pretraining"] = {"minibatch": minibatch}
        if self._config is not None:
            data["config"] = dict(self._config)
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        if "://" in self.save_dir:  # no rename there
            with self.path_manager.open(f"{self.save_dir}/{name}.pth", "wb") as file:
                torch.save(data, file)
            super().tag_last_checkpoint(f"{name}.pth")
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        try:
            with replacing(path) as file:
                torch.save(data, file)
            self.tag_last_checkpoint(f"{name}.pth")
        except (OSError, RuntimeError) as error:
            cause = root_os_error(error)
            if cause is None:
                raise
            raise OSError(
                cause.errno,
                f"{disk_error(path, cause)}\n"
                f"  The last checkpoint is {last or 'none'}"
                + ("; --resume goes on from it." if last else "."),
            ) from None  # torch's own errors on top of the disk's say nothing more

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replacing(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        """Whether there is something to resume from, or what is left of it."""
        return bool(self.get_checkpoint_file()) or super().has_checkpoint()

    def get_checkpoint_file(self) -> str:
        """The newest checkpoint in the folder, which is not opened; "" if there is none."""
        if "://" in self.save_dir:
            return super().get_checkpoint_file()
        return next(iter(resumable_checkpoints(self.save_dir)), "")

    def find_loadable(self) -> str:
        """The newest checkpoint in the folder that can be loaded; "" if there is none at all.

        Rank 0 reads it and checks its checksums, which takes about as long as loading it, and warns
        of damaged ones. All ranks must call it.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        found: tuple[str, str] = ("", "")
        if comm.is_main_process():
            found = self._find_loadable()
        path, problem = comm.all_gather(found)[0]
        if problem:
            raise CheckpointError(problem)
        return path

    def _find_loadable(self) -> tuple[str, str]:
        """The path and no problem, or no path and the problem."""
        if "://" in self.save_dir:
            return self.get_checkpoint_file(), ""
        tagged = tagged_checkpoint(self.save_dir)
        candidates = resumable_checkpoints(self.save_dir)
        problems = []
        if super().has_checkpoint() and not os.path.isfile(tagged):
            named = f"names {tagged}, which is not there" if tagged else "names no file"
            problems.append(f"{self.save_dir}/last_checkpoint: {named}")
        elif candidates and not tagged:
            problems.append(f"{self.save_dir}/last_checkpoint: not there")
        for path in candidates:
            damage = find_damage(path) or self._find_unreadable(path)
            if not damage:
                if problems:
                    _warn_of_damage(problems, path)
                return path, ""
            problems.append(f"{path}: {damage}")
        if not problems:
            return "", ""
        listing = "\n".join(f"  * {problem}" for problem in problems)
        return "", (
            f"--resume: no checkpoint in {self.save_dir} can be loaded:\n{listing}\n"
            "  Put a good one there, and its name into last_checkpoint; or start anew without "
            "--resume, or in another output folder."
        )

    def _find_unreadable(self, path: str) -> str:
        # What is not in a checksum, such as the sizes in the archive's directory.
        try:
            self._found = path, self._torch_load(path)  # for `load`, which most often follows
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from `find_loadable`, or load the weights of ``path`` if there is none.

        It also removes partial files that a killed process left. All ranks must call it.

        Args:
            path: weights to start from; "" for none.
            resume: whether to look for a checkpoint in the output folder first.

        Raises:
            CheckpointError: as `load`; or all checkpoints to resume from are damaged.
        """
        if self.save_to_disk:
            self._remove_leftovers()
        self._resumed = self.find_loadable() if resume and self.save_dir else ""
        if self._resumed:
            return self.load(self._resumed)
        return self.load(path, checkpointables=[])

    def _remove_leftovers(self) -> None:
        folder = Path(self.save_dir)
        for path in [*folder.glob("*.pth.tmp"), *folder.glob("last_checkpoint.tmp")]:
            logger.warning("Removing %s, left by a run that was killed while saving", path)
            path.unlink(missing_ok=True)

    def periodic_checkpoints(self) -> list[str]:
        """Files of the numbered checkpoints in the folder, the oldest first.

        After `resume_or_load` only those up to the one that the run resumed from: it will write
        the later ones, which it could not or was told not to use, again.
        """
        numbered = numbered_checkpoints(self.save_dir)
        last = numbered.get(self._resumed, math.inf)
        paths = [path for path, number in numbered.items() if number <= last and number < math.inf]
        return sorted(paths, key=numbered.__getitem__)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint, as detectron2 does, and compare its model with this one.

        Args:
            path: path or URL; "" loads nothing.
            checkpointables: names of those to load besides the model; None for all.

        Raises:
            CheckpointError: the file is not there, cannot be downloaded or read, or has no
                parameter of the model; or it does not have all, and ``complete`` is set.
        """
        self._path = path
        if path:
            self._local_path(path)
        return super().load(path, checkpointables)

    def read(self, path: str) -> dict[str, Any]:
        """The content of a checkpoint, without loading it into the model.

        Raises:
            CheckpointError: the file is not there, or cannot be downloaded or read.
        """
        local = self._local_path(path)
        self._parsed_url_during_load: Any = urlparse(path)
        try:
            return self._load_file(local)
        finally:
            self._parsed_url_during_load = None

    def _local_path(self, path: str) -> str:
        """Where the file is, which is downloaded if it is not there yet."""
        path = path.partition("?")[0]
        if "://" not in path:
            check_is_file(path)
            return path
        try:
            return self.path_manager.get_local_path(path)
        except CheckpointError:
            raise
        except Exception as error:  # of urllib, http, iopath and its handlers
            hint = "see detectron2's MODEL_ZOO.md for" if "detectron2://" in path else "check"
            raise CheckpointError(
                f"cannot get {path}: {error or type(error).__name__}; {hint} the address, or "
                "download it elsewhere and name the file"
            ) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            # As detectron2 reads it, but for the code that a pickle may bring.
            loaded = self._torch_load(filename)
            if not ("model" in loaded and "__author__" in loaded):
                blobs = loaded.get("blobs", loaded)
                blobs = {key: x for key, x in blobs.items() if not key.endswith("_momentum")}
                loaded = {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        else:
            loaded = super()._load_file(filename)
        state = loaded["model"]
        if (
            not state
            or not isinstance(state, dict)
            or not all(isinstance(x, (torch.Tensor, np.ndarray)) for x in state.values())
        ):
            keys = shown(state) if isinstance(state, dict) else repr(state)
            raise CheckpointError(
                f"{filename} has no state dict that detectron2 loads: it has {keys}. "
                f"{_CONVERTS}; of other models, save the state dict alone"
            )
        return loaded

    def _torch_load(self, filename: str) -> dict[str, Any]:
        (path, content), self._found = self._found, ("", {})
        if path != filename:
            content = read_checkpoint(filename)
        if not isinstance(content, dict):
            raise CheckpointError(f"{filename} has no state dict, but a {type(content).__name__}")
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        move_backbone(checkpoint, self.model)
        lines = compare_with_checkpoint(checkpoint, self.model)
        pretraining = checkpoint.get("pretraining") or {}
        if lines and self._complete and pretraining.get("boxes"):
            take_inference_settings(pretraining, self.model)
            left = compare_with_checkpoint(checkpoint, self.model)
            taken = [line for line in lines if line not in left]
            logger.warning(
                "The model is evaluated as %s was in its project; taken from there:\n%s",
                *(self._path, "\n".join(f"  * {line}" for line in taken)),
            )
            lines = left
        if lines:
            logger.warning(
                "!!! THE CHECKPOINT'S MODEL DIFFERS FROM THIS ONE: %s\n%s\n"
                "  Its weights load without an error, but this model computes other features from "
                "them than they were trained for. Take weights that were trained this way, or give "
                "the model the checkpoint's setting.",
                *(self._path, "\n".join(f"  * {line}" for line in lines)),
            )
        checkpoint.pop("norms", None)
        checkpoint.pop("pretraining", None)
        first = shown(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        names = dict(self.model.named_parameters())
        lacking = {*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)}
        lacking &= set(names)
        if names and len(lacking) == len(names):
            raise CheckpointError(
                f"{self._path} has no parameter of the model: its keys are {first}, the model's "
                f"{shown(names)}. {_CONVERTS}"
            )
        if lacking and self._complete:
            raise CheckpointError(
                f"{self._path} lacks {len(lacking)} of the model's {len(names)} parameters, or has "
                f"them in another shape: {shown(sorted(lacking))}. Their random values would "
                "be evaluated; name a checkpoint of the whole model"
            )
        return incompatible


def _check_finite(model: nn.Module, last_checkpoint: str) -> None:
    # state_dict, so that BCN's and SN's estimates are seen as well as parameters.
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise FloatingPointError(
                f"{name} is not finite: this checkpoint is not saved; the last good one is "
                f"{last_checkpoint or 'none'}"
            )


def _warn_of_damage(problems: list[str], path: str) -> None:
    logger.warning(
        "!!! DAMAGED CHECKPOINTS:\n%s\n"
        "  Going on from %s instead. What was trained after it is trained again.",
        "\n".join(f"  * {problem}" for problem in problems),
        path,
    )
