"""A trained detector with what it needs to look at images: its config's transforms and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from ..checkpoint import WSBCNCheckpointer
from ..config import Config, load_config, read_config, resolve_config_file
from ..errors import ConfigError, UserError

__all__ = ["Detector", "class_names", "load_detector"]


@dataclass
class Detector:
    """A detector in evaluation mode.

    Attributes:
        model: on ``device``.
        cfg: its config, of either kind.
        augmentations: of the test data: most often one resizing.
        image_format: ``"RGB"`` or ``"BGR"``, which the model takes.
        classes: names in the order of its outputs; empty where the config does not say them.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.
    """

    model: nn.Module
    cfg: Config
    augmentations: T.AugmentationList
    image_format: str
    classes: list[str]
    device: str

    def tensor(self, image: np.ndarray) -> Tensor:
        """The model's input ``(3, H', W')`` of an image ``(H, W, 3)`` in ``image_format``."""
        inputs = T.AugInput(image)
        self.augmentations(inputs)
        return torch.from_numpy(inputs.image.transpose(2, 0, 1).copy())

    def read(self, path: str) -> np.ndarray:
        """An image file as ``(H, W, 3)`` in ``image_format``, read as in training.

        Raises:
            UserError: it is not there, or no image.
        """
        try:
            return read_image(path, self.image_format)
        except Image.DecompressionBombError as error:
            raise UserError(
                f"{path} has too many pixels to be looked at as a whole (Pillow: {error}); "
                "predict.py takes it with --tile"
            ) from error
        except Exception as error:  # whatever a decoder makes of it
            raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Any:
        """The instances in an image ``(H, W, 3)`` of ``image_format``, on the CPU."""
        height, width = image.shape[:2]
        inputs = {"image": self.tensor(image), "height": height, "width": width}
        return self.model([inputs])[0]["instances"].to("cpu")


def load_detector(
    config_file: str, weights: str = "", opts: Sequence[str] = (), device: str = "auto"
) -> Detector:
    """Build the detector of a config, and load its weights.

    The data that the config names need not be there.

    Args:
        config_file: a run's ``config.yaml``, a recipe, or one of detectron2's model zoo.
        weights: a checkpoint; empty: the config's ``train.init_checkpoint`` or ``MODEL.WEIGHTS``.
        opts: overrides, as for ``train_net.py``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.

    Raises:
        ConfigError: a mistake in the arguments or the config.
        CheckpointError: the weights cannot be read, or are of another model.
    """
    from .. import data  # noqa: F401  registers what a config may name

    cfg = load_config(resolve_config_file(config_file), opts, dataset=None)
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device
    else:
        cfg.train.device = device
    run = read_config(cfg, world_size=1, opts=["MODEL.DEVICE", "train.device="])
    weights = weights or run.options.init_checkpoint
    if not weights:
        raise ConfigError("--weights is missing: a run's model_final.pth, for example")
    test_set = run.first_test_set()
    mapper = test_set[1] if test_set else None
    if not isinstance(mapper, DatasetMapper):
        raise ConfigError(
            "the config's test data have no DatasetMapper of detectron2's, which says how an image "
            "is resized"
        )
    model = run.build_model().eval()
    WSBCNCheckpointer(model, complete=True).load(weights)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    classes = class_names(cfg, run.dataset_names("test"))
    return Detector(model, cfg, mapper.augmentations, mapper.image_format, classes, run.device)


def class_names(cfg: Config, datasets: Sequence[str]) -> list[str]:
    """The classes' names, in the order of the model's outputs; none where nothing says them.

    Args:
        cfg: has them where it was made for the user's own data.
        datasets: of the config; of those that are registered, the names that they bring.
    """
    if isinstance(cfg, CfgNode):
        named = list(cfg.DATA.CLASSES)
    else:
        named = list(OmegaConf.select(cfg, "data.classes") or [])
    for name in datasets:
        if not named and name in DatasetCatalog:
            named = list(MetadataCatalog.get(name).get("thing_classes", []))
    return named
