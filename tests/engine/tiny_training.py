"""`wsbcn_d2.engine.train` on a tiny dataset and Mask R-CNN, inside the calling process."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.engine.tiny_run import LAZY_CONFIG, make_dataset

# Widths that 32 groups divide; with a stride they change, as a shortcut needs.
_STAGES = "(1, 32, 32), (2, 32, 64), (2, 64, 32), (2, 32, 64)"
_CONFIG = (
    LAZY_CONFIG.replace("out_channels=8", "out_channels=32")
    .replace("out_channels = 16", "out_channels = 32")
    .replace("(1, 8, 8), (2, 8, 16), (2, 16, 24), (2, 24, 32)", _STAGES)
    .replace("in_channels = 16", "in_channels = 32")
    .replace("channels=16", "channels=32")
    .replace("[16, 16]", "[32, 32]")
    + """
dataloader.train.dataset.names = "tiny_train"
dataloader.train.mapper.augmentations[0].update(short_edge_length=[64, 80])
dataloader.test = dataloader.evaluator = []
lr_multiplier.warmup_factor = 0.5
"""
)


def prepare(folder: Path) -> None:
    """The dataset and the config, in ``folder``."""
    make_dataset(folder, num_train=10, num_val=1)
    (folder / "tiny.py").write_text(_CONFIG)


def training(
    folder: Path, output: str, *overrides: str, norm: str = "GN", resume: bool = False
) -> dict[str, Any]:
    """Train in ``folder / output``; returns the final checkpoint. All ranks call it."""
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets import load_coco_json
    from detectron2.utils.env import seed_all_rng

    from wsbcn_d2.engine import load_config, read_config, train
    from wsbcn_d2.modeling import register_norms, use_norm

    coco = folder / "coco"
    file = coco / "annotations" / "instances_train2017.json"
    DatasetCatalog.pop("tiny_train", None)  # another test file's
    DatasetCatalog.register(
        "tiny_train", lambda: load_coco_json(str(file), str(coco / "train2017"), "tiny_train")
    )
    os.makedirs(folder / output, exist_ok=True)
    register_norms()
    options = ["train.max_iter=6", "train.checkpointer.period=2", "train.images_per_gpu=1"]
    cfg = load_config(
        str(folder / "tiny.py"), [f"train.output_dir={folder / output}", *options, *overrides]
    )
    use_norm(cfg.model, norm)
    torch.set_num_threads(1)
    if cfg.train.seed >= 0:
        seed_all_rng(cfg.train.seed)  # as default_setup does
    train(read_config(cfg), resume)
    return torch.load(folder / output / "model_final.pth", weights_only=True)


@contextmanager
def float64() -> Iterator[None]:
    """Detectors that are built and run inside compute in float64."""
    from detectron2.modeling.proposal_generator import proposal_utils

    batched_nms, dtype = proposal_utils.batched_nms, torch.get_default_dtype()
    # detectron2 casts the boxes to float32, and torchvision wants the scores in the same type.
    proposal_utils.batched_nms = lambda boxes, scores, *args: batched_nms(
        boxes, scores.float(), *args
    )
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        proposal_utils.batched_nms = batched_nms


def assert_resumes_exactly(
    run: Callable[..., None], folder: Path, checkpoint: str
) -> dict[str, float]:
    """A run resumed at a checkpoint ends with the weights of the one that wrote it, bit for bit.

    Args:
        run: given the output folder and flags of the command line.
        folder: for the runs' folders, ``whole`` and ``half``.
        checkpoint: one before the last.

    Returns:
        the last value of each of its metrics.
    """
    run(folder / "whole")
    (folder / "half").mkdir()
    shutil.copy(folder / "whole" / checkpoint, folder / "half")
    run(folder / "half", "--resume")
    ours, theirs = (
        torch.load(folder / name / "model_final.pth", weights_only=True)["model"]
        for name in ("half", "whole")
    )
    assert not differing(ours, theirs)
    for name in ("curves.png", "predictions.png"):
        assert (folder / "half" / name).exists()
    lines = (folder / "half/metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two checkpoints differ in any bit."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        found = [] if set(a) == set(b) else [f"{path}: {set(a) ^ set(b)}"]
        return found + [d for k in a if k in b for d in differing(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, list | tuple):
        return differing(dict(enumerate(a)), dict(enumerate(b)), path)
    return [] if a == b else [path]


@contextmanager
def signal_at(iteration: int) -> Iterator[None]:
    """Inside, a training in this process receives SIGUSR2 during an iteration."""
    from wsbcn_d2.engine import Trainer

    backward = Trainer.backward

    def signalling(self: Trainer, loss: torch.Tensor) -> None:
        if self.iter == iteration:
            os.kill(os.getpid(), signal.SIGUSR2)
        backward(self, loss)

    Trainer.backward = signalling  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.backward = backward  # type: ignore[method-assign]
