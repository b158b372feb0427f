"""Small detectors with random weights, whose norms have statistics as after a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

from wsbcn_d2 import get_config
from wsbcn_d2.checkpoint import describe_model
from wsbcn_d2.deploy import Detector, load_detector
from wsbcn_d2.modeling import register_norms, use_norm
from wsbcn_d2.norms import SparseSwitchNorm2d

# Names of the test, norm, weight standardization.
NORMS = {
    "BN": ("BN", False),
    "FrozenBN": ("FrozenBN", False),
    "BRN": ("BRN", False),
    "GN": ("GN", False),
    "WS+GN": ("GN", True),
    "WS+BCN": ("BCN", True),
    "SN": ("SN", False),
    "SN_IN_LN": ("SN_IN_LN", False),
    "SyncSN": ("SyncSN", False),
    "SSN": ("SSN", False),
    "hard SSN": ("SSN", False),
    "IN": ("IN", False),
}


def make_config(name: str) -> Any:
    norm, standardize = NORMS[name]
    cfg = get_config("quick/mask_rcnn_r18_fpn_gn")
    use_norm(cfg.model, norm, standardize=standardize)
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    cfg.model.roi_heads.box_predictor.test_topk_per_image = 20
    cfg.train.device = "cpu"
    return cfg


def write_detector(folder: Path, name: str) -> tuple[Path, Path]:
    """A config and a checkpoint."""
    register_norms()
    cfg = make_config(name)
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    randomize_norms(model, hard=name == "hard SSN")
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    content = {"model": model.state_dict(), "norms": describe_model(model)}
    torch.save(content, folder / "model_final.pth")
    return folder / "config.yaml", folder / "model_final.pth"


def randomize_norms(model: nn.Module, hard: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_mean"):
            value.data.uniform_(-0.2, 0.2, generator=generator)
        elif name.endswith("running_var") or name.endswith(("norm.weight", "norm.bn.weight")):
            value.data.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith(("norm.bias", "norm.bn.bias", "mean_weight", "var_weight")):
            value.data.uniform_(-0.5, 0.5, generator=generator)
    for module in model.modules():
        if hard and isinstance(module, SparseSwitchNorm2d):
            at = module.statistics.index("bn")
            module.mean_fixed.fill_(at)
            module.var_fixed.fill_(at)


def load(folder: Path, name: str) -> Detector:
    config, weights = write_detector(folder, name)
    return load_detector(str(config), str(weights))


def make_images(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, size, dtype=np.uint8) for size in ((80, 96, 3), (65, 70, 3))]
