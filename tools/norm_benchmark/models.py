"""The suite of whole models: training steps and evaluation forwards of a Mask R-CNN."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from wsbcn_d2.modeling import register_norms, use_norm
from wsbcn_d2.recipes import config_root

from .layers import imported
from .measuring import Clock, Result, Round, kept_bytes, summarize, take_turns

__all__ = ["run_models"]

CONFIGS = config_root() / "common" / "models"


def _build_model(name: str, kind: str, options: argparse.Namespace) -> Any:

    register_norms()
    model = LazyConfig.load(str(CONFIGS / f"{kind}.py")).model
    plain = name.removeprefix("WS+")
    norm = imported(plain) if ":" in plain else plain
    use_norm(model, norm, standardize=plain != name)
    torch.manual_seed(0)
    built: nn.Module = instantiate(model).to(options.device)
    if options.channels_last:
        built = built.to(memory_format=torch.channels_last)
    return built


def _images(height: int, width: int, count: int, num_classes: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(count):
        corners = torch.rand(8, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        sizes = (0.1 + 0.4 * torch.rand(8, 2, generator=generator)) * min(height, width)
        boxes = Boxes(torch.cat([corners, corners + sizes], 1))
        boxes.clip((height, width))
        masks = torch.zeros(8, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.tensor.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances = Instances((height, width), gt_boxes=boxes, gt_masks=BitMasks(masks))
        instances.gt_classes = torch.randint(num_classes, (8,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        images.append({"image": image, "instances": instances, "height": height, "width": width})
    return images


def _model_round(model: nn.Module, batch: list[dict[str, Any]], clock: Clock) -> Round:
    """The caller opens detectron2's EventStorage."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    def sample() -> dict[str, float]:
        model.train()
        torch.manual_seed(0)  # the same boxes are drawn
        train, _ = clock(step)
        with torch.no_grad():
            model.eval()
            evaluation, _ = clock(lambda: model(batch))
        return {"train": train, "eval": evaluation}

    return sample


def _train_loss(model: nn.Module, batch: list[dict[str, Any]]) -> Tensor:
    torch.manual_seed(0)
    model.train()
    with EventStorage():
        losses: list[Tensor] = list(model(batch).values())
    return torch.stack(losses).sum()


def run_models(options: argparse.Namespace) -> Iterator[Result]:
    """Whole training steps, loss to optimizer, and evaluation forwards of a Mask R-CNN."""
    if not (CONFIGS / f"{options.model}.py").exists():
        known = sorted(path.stem for path in CONFIGS.glob("*.py"))
        raise ValueError(f"unknown model {options.model!r}; known: {', '.join(known)}")
    height, width = options.image_size
    clock = Clock(options.device)
    rounds: dict[str, Round] = {}
    held: dict[str, int] = {}
    for name in options.norms:
        model = _build_model(name, options.model, options)
        batch = _images(height, width, options.images, model.roi_heads.num_classes)
        _train_loss(model, batch)
        if options.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            _train_loss(model, batch).backward()
            model.zero_grad(set_to_none=True)
            held[name] = torch.cuda.max_memory_allocated() - before
        else:
            held[name] = kept_bytes(partial(_train_loss, model, batch))
        rounds[name] = _model_round(model, batch, clock)
    unit = held.get(options.baseline)
    kept = {name: size / unit if unit else None for name, size in held.items()}
    case = f"{options.model} {options.images}x{height}x{width}"
    with EventStorage():
        times = take_turns(rounds, options.rounds)
    for result in summarize("models", case, times, options.baseline, kept):
        size = f"{held[result.norm] / 2**20:,.0f} MiB" if result.work == "train" else ""
        yield result._replace(note=size)
