"""Fold a trained detector into plain layers, for detectron2 without this project where it can be.

Weight standardization becomes weights; norms that are affine in evaluation (BN, FrozenBN, BRN, SN
whose ratios chose the batch statistic, BCN's batch stage) go into the convolution before them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2
from wsbcn_d2.deploy import fold_model, load_detector, save_folded
from wsbcn_d2.errors import UserError, exit_with_message

__all__ = ["main"]

EPILOG = """
examples:

  $ python tools/fold_model.py --config-file output/mine/config.yaml \\
        --weights output/mine/model_final.pth --output output/mine/folded mine/images/*.jpg

  then, with or without this project
    >>> cfg = LazyConfig.load("output/mine/folded/config.yaml")  # config.py, where it is written
    >>> model = instantiate(cfg.model)
    >>> DetectionCheckpointer(model).load("output/mine/folded/model.pth")
"""
# Of the largest feature.
_TOLERANCE = 1e-4


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="a run's config.yaml, or a recipe")
    parser.add_argument("--weights", default="", help="default: the config's")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="for config and weights")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="to compare and to time")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Fold, compare, time, write."""
    args = _parser().parse_args(argv)
    with exit_with_message("fold_model.py"):
        detector = load_detector(args.config_file, args.weights, device=args.device)
        folding = fold_model(detector.model)
        images = [detector.tensor(detector.read(path)).to(detector.device) for path in args.images]
        before, after = (_run(model, images) for model in (detector.model, folding.model))
        worst = max(
            ((x - y).abs().max() / x.abs().max()).item()
            for ours, theirs in zip(before[0], after[0], strict=True)
            for x, y in zip(ours, theirs, strict=True)
        )
        if not worst <= _TOLERANCE:
            raise UserError(
                f"the folded model's features differ by {worst:.2g} of the largest, more than "
                f"{_TOLERANCE:g}; nothing was written"
            )
        path = save_folded(folding, detector.cfg, args.output)
    print(folding)
    print(f"features differ by {worst:.2g} of the largest, on {len(images)} images")
    print(f"{1000 * before[1]:.1f} ms an image before, {1000 * after[1]:.1f} ms after")
    needs = "with wsbcn_d2" if folding.remaining else "with detectron2 alone"
    print(f"{path} loads {needs}")


@torch.inference_mode()
def _run(model: Any, images: Sequence[Tensor]) -> tuple[list[list[Tensor]], float]:
    """The backbone's features of each image, and the whole detector's median time (seconds)."""
    features, times = [], []
    for image in images:
        x = model.preprocess_image([{"image": image}]).tensor
        features.append(list(model.backbone(x).values()))
        for _ in range(3):
            start = time.perf_counter()
            model([{"image": image}])
            if image.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return features, sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main()
