"""detectron2's checkpointer, which also knows about norms and never leaves half a file."""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from ..errors import UserError
from .files import disk_error, find_damage, replacing, root_os_error
from .norm_kinds import compare_norms, describe_norms
from .pretraining_check import check_pretraining

__all__ = ["CheckpointError", "WSBCNCheckpointer"]

logger = logging.getLogger(__name__)


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be read; the message names it and says what to do."""


class WSBCNCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` for models whose norms and weight standardization matter.

    * It saves what `describe_norms` says of the model, under ``"norms"``. On loading, a difference
      to the model is a loud warning that names both sides. So is a difference to the pretraining
      that `convert_weights` recorded.
    * Files appear whole or not at all, whatever kills the process or fills the disk, and weights
      that are not finite are not saved.
    * A run resumes from the newest checkpoint that is whole. Damaged ones are reported.

    Not for guarding an exact resume: parameters that do not fit are skipped with a warning, as in
    detectron2.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        images_per_process: int | None = None,
        config: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """As detectron2's.

        Args:
            images_per_process: images that a process sees at a time in the training to come, to be
                compared with the pretraining's; None: not compared.
            config: the run's options by key, saved under ``"config"``; None saves none.
        """
        super().__init__(model, save_dir, **kwargs)
        self._config = config
        self._path = ""
        self._images_per_process = images_per_process
        self._resumed = ""

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
        data = {"model": self.model.state_dict(), "norms": describe_norms(self.model)}
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
        """The newest checkpoint in the folder, not looked into; "" if there is none."""
        if "://" in self.save_dir:
            return super().get_checkpoint_file()
        return next(iter(self._candidates()), "")

    def _tagged(self) -> str:
        """The file that last_checkpoint names, there or not; "" if it names none."""
        try:
            name = Path(self.save_dir, "last_checkpoint").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""
        # After a loss of power a file may be of the right length and all zeros.
        return os.path.join(self.save_dir, name) if name.isprintable() and name else ""

    def _candidates(self) -> list[str]:
        """Files that a run may resume from, the best first."""
        age = {}  # (time of writing, iteration) by path
        for path, iteration in self._numbered().items():
            # An evaluation may look while the training deletes an old one.
            with suppress(FileNotFoundError):
                age[path] = (os.stat(path).st_mtime_ns, iteration)
        newest_first = sorted(age, key=age.__getitem__, reverse=True)
        tagged = self._tagged()
        if not os.path.isfile(tagged):
            return newest_first
        # last_checkpoint decides (a user may have set it back), unless the process was killed
        # between completing a checkpoint and naming it there.
        since = os.stat(os.path.join(self.save_dir, "last_checkpoint")).st_mtime_ns
        after = age.get(tagged, (0, math.inf))[1]
        untagged = [path for path in newest_first if age[path][0] >= since and age[path][1] > after]
        return list(dict.fromkeys([*untagged, tagged, *newest_first]))

    def _numbered(self) -> dict[str, float]:
        """Iteration by path of the model_… files, infinity for model_final.pth."""
        if "://" in self.save_dir or not os.path.isdir(self.save_dir):
            return {}
        numbered = {}
        for name in os.listdir(self.save_dir):
            match = re.fullmatch(r"model_(?:(\d+)|final)\.pth", name)
            if match is not None:
                number = math.inf if match[1] is None else int(match[1])
                numbered[os.path.join(self.save_dir, name)] = number
        return numbered

    def find_loadable(self) -> str:
        """The newest checkpoint in the folder that can be loaded; "" if there is none at all.

        Rank 0 reads it whole and compares its checksums, so this takes about as long as loading
        it. Damaged ones are warned of. With several processes all must call it.

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
        tagged = self._tagged()
        candidates = self._candidates()
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
            self._torch_load(path)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from `find_loadable`, or load the weights of ``path`` where there is nothing.

        Also removes what a killed process has left of a file that it was writing. With several
        processes all must call it.

        Raises:
            CheckpointError: ``resume``, and all checkpoints are damaged: this is no new run; or as
                `load`.
        """
        if self.save_to_disk:
            self._remove_leftovers()
        self._resumed = self.find_loadable() if resume and self.save_dir else ""
        if self._resumed:
            return self.load(self._resumed)
        return self.load(path, checkpointables=[])

    def _remove_leftovers(self) -> None:
        if not os.path.isdir(self.save_dir):
            return
        for name in os.listdir(self.save_dir):
            if name == "last_checkpoint.tmp" or name.endswith(".pth.tmp"):
                path = Path(self.save_dir, name)
                logger.warning("Removing %s, left by a run that was killed while saving", path)
                path.unlink(missing_ok=True)

    def periodic_checkpoints(self) -> list[str]:
        """Files of the numbered checkpoints in the folder, the oldest first.

        After `resume_or_load` only those up to the one that the run resumed from: it will write
        the later ones, which it could not or was told not to use, again.
        """
        numbered = self._numbered()
        last = numbered.get(self._resumed, math.inf)
        paths = [path for path, number in numbered.items() if number <= last and number < math.inf]
        return sorted(paths, key=numbered.__getitem__)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint, as detectron2 does, and warn of other norms than the model's.

        Raises:
            CheckpointError: no such file, a URL that cannot be downloaded, or a file that is
                truncated or otherwise damaged.
        """
        self._path = path
        local = path.partition("?")[0] if path else ""
        if "://" in local:
            try:
                self.path_manager.get_local_path(local)
            except OSError as error:
                raise CheckpointError(
                    f"cannot download the checkpoint {path}: {error}; download it elsewhere and "
                    "name the file (train.init_checkpoint=… or MODEL.WEIGHTS …)"
                ) from error
        elif local and not os.path.isfile(local):
            raise CheckpointError(
                f"no checkpoint {local} (looked for {os.path.abspath(local)}); name one that is "
                "there (train.init_checkpoint=… or MODEL.WEIGHTS …), or none to start from scratch"
            )
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> Any:
        try:
            return super()._load_file(filename)
        except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            reason = "" if filename.endswith(".pkl") else find_damage(filename)
            raise CheckpointError(
                f"cannot read the checkpoint {filename}: {reason or error}; get it anew, or name "
                "another one (train.init_checkpoint=… or MODEL.WEIGHTS …)"
            ) from error

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        recorded = checkpoint.pop("norms", None)
        pretraining = checkpoint.pop("pretraining", None)
        check_pretraining(self._path, pretraining, recorded, self.model, self._images_per_process)
        lines = compare_norms(checkpoint["model"], recorded, self.model)
        if lines:
            logger.warning(
                "!!! THE CHECKPOINT'S NORMALIZATION DIFFERS FROM THE MODEL'S: %s\n%s\n"
                "  Such weights load without an error, but the model computes other features from "
                "them than they were trained for:\n"
                "  evaluating it is meaningless, and finetuning it starts worse than it seems. "
                "Take weights that were trained this way,\n"
                "  or give the model the checkpoint's normalization.",
                self._path,
                "\n".join(f"  * {line}" for line in lines),
            )
        return super()._load_model(checkpoint)


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
