"""detectron2's checkpointer, which also knows about norms and never leaves half a file."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from .norm_kinds import compare_norms, describe_norms
from .pretraining_check import check_pretraining

__all__ = ["WSBCNCheckpointer"]

logger = logging.getLogger(__name__)


class WSBCNCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` for models whose norms and weight standardization matter.

    * It saves what `describe_norms` says of the model, under ``"norms"``. On loading, a difference
      to the model is a loud warning that names both sides. So is a difference to the pretraining
      that `convert_weights` recorded.
    * Files appear whole or not at all, and weights that are not finite are not saved: what
      ``last_checkpoint`` names can be resumed from.

    Not for guarding an exact resume: parameters that do not fit are skipped with a warning, as in
    detectron2.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        images_per_process: int | None = None,
        **kwargs: Any,
    ) -> None:
        """As detectron2's.

        Args:
            images_per_process: images that a process sees at a time in the training to come, to be
                compared with the pretraining's; None: not compared.
        """
        super().__init__(model, save_dir, **kwargs)
        self._path = ""
        self._images_per_process = images_per_process

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model, the checkpointables and ``kwargs`` as ``<name>.pth``.

        Raises:
            FloatingPointError: a parameter or running statistic is not finite; nothing is written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        _check_finite(self.model, self.get_checkpoint_file())
        data = {"model": self.model.state_dict(), "norms": describe_norms(self.model)}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        if "://" in self.save_dir:  # no rename there
            with self.path_manager.open(f"{self.save_dir}/{name}.pth", "wb") as file:
                torch.save(data, file)
            super().tag_last_checkpoint(f"{name}.pth")
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with open(f"{path}.tmp", "wb") as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            file.write(last_filename_basename)
        os.replace(f"{path}.tmp", path)

    def periodic_checkpoints(self) -> list[str]:
        """Files of the numbered checkpoints in the folder, the oldest first."""
        if "://" in self.save_dir or not os.path.isdir(self.save_dir):
            return []
        names = sorted(n for n in os.listdir(self.save_dir) if n.endswith(".pth"))
        return [os.path.join(self.save_dir, n) for n in names if n[6:-4].isdigit()]

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint, as detectron2 does, and warn of other norms than the model's.

        Raises:
            FileNotFoundError: no such file.
            OSError: a URL that cannot be downloaded.
        """
        self._path = path
        local = path.partition("?")[0] if path else ""
        if "://" in local:
            try:
                self.path_manager.get_local_path(local)
            except OSError as error:
                raise OSError(
                    f"cannot download the checkpoint {path}: {error}; download it elsewhere and "
                    "name the file (train.init_checkpoint=… or MODEL.WEIGHTS …)"
                ) from error
        elif local and not os.path.isfile(local):
            raise FileNotFoundError(
                f"no checkpoint {local} (looked for {os.path.abspath(local)}); name one that is "
                "there (train.init_checkpoint=… or MODEL.WEIGHTS …), or none to start from scratch"
            )
        return super().load(path, checkpointables)

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
