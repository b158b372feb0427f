"""The ratios of a run or of a checkpoint, with what its config tells of the layers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoint.reading import read_checkpoint, unwrap
from ..errors import UserError
from ..norms import SparseSwitchNorm2d, SwitchNorm, SwitchNorm2d
from .layer_names import layer_label, layer_part
from .ratio_log import LayerRatios, read_ratio_log
from .ratios import collect_ratios, switch_layers
from .receptive_field import receptive_fields

__all__ = ["Layer", "RunRatios", "load_run_ratios"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A layer as people know it.

    Attributes:
        label: such as ``"res2.0.conv1"``.
        part: such as ``"res2"``.
        receptive_field: pixels of the image; None in heads, which see regions, and where no config
            tells it.
    """

    label: str
    part: str
    receptive_field: int | None


@dataclass
class RunRatios:
    """What the SN layers of a run learned.

    Attributes:
        name: of the run's folder, or of the checkpoint's.
        layers: by module name, in the order in which they run.
        ratios: of each of them; of a checkpoint, a single record.
    """

    name: str
    layers: dict[str, Layer]
    ratios: dict[str, LayerRatios]

    @property
    def iterations(self) -> np.ndarray:
        """When the ratios were recorded."""
        return next(iter(self.ratios.values())).iterations

    def parts(self) -> dict[str, list[str]]:
        """The layers' names by part, in their order."""
        found: dict[str, list[str]] = {}
        for name, layer in self.layers.items():
            found.setdefault(layer.part, []).append(name)
        return found


def load_run_ratios(path: str | Path, name: str = "") -> RunRatios:
    """Read the ratios of a run's folder (``ratios.json``) or of a checkpoint.

    A folder without the record is read by its last checkpoint. Receptive fields and the order of
    the layers come from the ``config.yaml`` beside them; without one, the order is the file's.

    Args:
        path: a folder, or a file.
        name: what to call it; "" for the folder's name.

    Raises:
        UserError: there are no ratios in it.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    model = _model(folder / "config.yaml")
    ratios = read_ratio_log(folder / "ratios.json") if path.is_dir() else {}
    if not any(len(layer.iterations) for layer in ratios.values()):
        ratios = _of_checkpoint(_last_checkpoint(path) if path.is_dir() else path, model)
    fields = {} if model is None else _fields(model)
    order = {n: i for i, n in enumerate(fields)}
    names = sorted(ratios, key=lambda n: order.get(n, len(order)))
    return RunRatios(
        name or (path.name if path.is_dir() else f"{folder.name}/{path.stem}".lstrip("/")),
        {n: Layer(layer_label(n), layer_part(n), fields.get(n)) for n in names},
        {n: ratios[n] for n in names},
    )


def _model(config: Path) -> nn.Module | None:
    """The run's model, without its weights."""
    from ..config import load_config, read_config

    if not config.is_file():
        return None
    try:
        return read_config(load_config(str(config), dataset=None)).build_model("meta")
    except Exception as error:  # a config of another project may need what is not here
        logger.warning("%s: the model was not built, so no receptive fields: %s", config, error)
        return None


def _fields(model: nn.Module) -> dict[str, int]:
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        return {}
    try:
        return {f"backbone.{name}": size for name, size in receptive_fields(backbone).items()}
    except Exception as error:  # any network, of which only the pictures' numbers are lost
        logger.warning("The backbone was not run, so no receptive fields: %s", error)
        return {}


def _last_checkpoint(folder: Path) -> Path:
    pointer = folder / "last_checkpoint"
    if not pointer.is_file():
        raise UserError(
            f"{folder}: no ratios.json and no checkpoint in it; name the output folder of a run "
            "with SN, SyncSN or SSN, or a checkpoint"
        )
    return folder / pointer.read_text(encoding="utf-8").strip()


def _of_checkpoint(path: Path, model: nn.Module | None) -> dict[str, LayerRatios]:
    content = read_checkpoint(path)
    try:
        state, around = unwrap(content)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    iteration = around.get("iteration", -1)
    if "ema" in around:  # as in ratios.json, the average
        state = {name.removeprefix("module."): value for name, value in around["ema"].items()}
    known = {} if model is None else switch_layers(model)
    layers = {
        name.removesuffix(".mean_weight"): _layer(name.removesuffix(".mean_weight"), state, known)
        for name in state
        if name.endswith(".mean_weight")
    }
    if not layers:
        raise UserError(f"{path}: no SN, SyncSN or SSN layer in it (no tensor …mean_weight)")
    found = {}
    for (name, layer), values in zip(layers.items(), collect_ratios(layers.values()), strict=True):
        mean, var = values.numpy()[:, None]
        iterations = np.array([iteration + 1])
        found[name] = LayerRatios(layer.statistics, iterations, mean, var)
    return found


def _layer(name: str, state: dict[str, Any], known: dict[str, SwitchNorm]) -> SwitchNorm:
    """A layer with the controls of a state dict."""
    fields = {
        key.removeprefix(f"{name}."): torch.as_tensor(value)
        for key, value in state.items()
        if key.startswith(f"{name}.")
    }
    controls = fields["mean_weight"]
    groups = controls.shape[0] if controls.dim() == 2 else 1
    statistics: tuple[str, ...] = {
        (3, True): ("in", "ln", "bn"),
        (2, True): ("ln", "bn"),
        (2, False): ("in", "ln"),
        (1, True): ("bn",),
    }.get((controls.shape[-1], "running_mean" in fields), ("in",))
    if name in known:
        statistics = known[name].statistics
    kind = SparseSwitchNorm2d if "radius" in fields else SwitchNorm2d
    layer = kind(fields["weight"].numel(), statistics=statistics, num_groups=groups)
    layer.load_state_dict(fields, strict=False)
    return layer
