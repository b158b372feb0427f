"""Hard ratios for a trained SN: each layer keeps the one statistic that it uses most.

    $ python tools/harden.py output/sn/model_final.pth sn_hard.pth
    $ python train_net.py --config-file configs/quick/mask_rcnn_r18_fpn_ssn.py --num-gpus 1 \\
          train.init_checkpoint=sn_hard.pth                                       # finetune
    $ python tools/harden.py output/sn/model_0001319.pth hard_60.pth --ratios-only  # from scratch

The result is a checkpoint of SSN, whose ratios are fixed to the largest of the mean's and of the
variance's: it trains on with them (arXiv:1907.10473, Sec. 4.1.4 and Table III: better than soft
ones in finetuning, worse from scratch), and evaluates with the chosen statistics alone. With
--ratios-only it holds nothing else, to train other weights from scratch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["harden", "main"]

_OF_LAYER = ("mean_weight", "var_weight", "mean_fixed", "var_fixed", "radius")


def harden(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of SN or SyncSN as one of SSN with fixed ratios; it shares the other tensors.

    Args:
        state: of a model, with ``….mean_weight`` and ``….var_weight`` ``(K,)`` or ``(G, K)``.

    Raises:
        ValueError: there is no such layer.
    """
    layers = [name[: -len("mean_weight")] for name in state if name.endswith("mean_weight")]
    if not layers:
        raise ValueError("no SN or SyncSN layer in it (no tensor …mean_weight)")
    hard = dict(state)
    for layer in layers:
        for kind in ("mean", "var"):
            controls = state[f"{layer}{kind}_weight"]
            hard[f"{layer}{kind}_fixed"] = controls.argmax(-1).reshape(-1)
        count = state[f"{layer}mean_weight"].shape[-1]
        hard[f"{layer}radius"] = torch.tensor(((count - 1) / count) ** 0.5)
    return hard


def main(argv: Sequence[str] | None = None) -> int:
    """Write the hardened checkpoint, and print what the layers chose."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of a model with SN or SyncSN")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--ratios-only", action="store_true", help="without the weights")
    args = parser.parse_args(argv)
    from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2
    from wsbcn_d2.checkpoint.reading import read_checkpoint, unwrap
    from wsbcn_d2.errors import UserError, exit_with_message

    with exit_with_message("harden"):
        content = read_checkpoint(args.checkpoint)
        try:
            state, around = unwrap(content)
            hard = harden(state)
        except ValueError as error:
            raise UserError(f"{args.checkpoint}: {error}") from error
        if args.ratios_only:
            hard = {name: t for name, t in hard.items() if name.rpartition(".")[2] in _OF_LAYER}
        result: dict[str, Any] = {"model": hard}
        if "norms" in around:
            record = around["norms"]
            kinds = {
                n: "SSN" if f"{n}.mean_fixed" in hard else k for n, k in record["norms"].items()
            }
            result["norms"] = {**record, "norms": kinds}
        torch.save(result, args.output)
        mean, var = (
            [hard[name] for name in hard if name.endswith(f"{kind}_fixed")]
            for kind in ("mean", "var")
        )
        total = sum(t.numel() for t in mean)
        apart = sum(int((m != v).sum()) for m, v in zip(mean, var, strict=True))
        print(f"{args.output}: {total} mean and {total} var ratios are hard; {apart} pairs differ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
