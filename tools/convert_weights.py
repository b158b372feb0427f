"""Convert published ResNets and detectors into a file that detectron2 and this project load.

Prints what became of every key of the file, and what the weights are: see docs/weights.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2
from wsbcn_d2.checkpoint import SOURCES, convert_weights

__all__ = ["main"]

EPILOG = """
examples:

  torchvision's ResNet-50, recognized by itself
    $ python tools/convert_weights.py resnet50-0676ba61.pth resnet50_bn.pth --minibatch 32

  mmdetection's GN, whose names do not say that it was trained without weight standardization
    $ python tools/convert_weights.py resnext50_32x4d_gn-c7e8b754.pth resnext50_gn.pth --no-ws

  Switchable Normalization whose running statistics are sums over 200 mini-batches
    $ python tools/convert_weights.py model.pth-100 resnet50_sn.pth --source sn --minibatch 32 \\
        --batch-average-count 200

  a whole detector of mmdetection, for an evaluation
    $ python tools/convert_weights.py mask_rcnn_r50_fpn_gn_ws-all_2x_coco_20200226-16acb762.pth \\
        mask_rcnn.pth

then
    $ python train_net.py --config-file … train.init_checkpoint=resnet50_sn.pth
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", help="the published file")
    parser.add_argument("output", metavar="OUT", help="the new file, ….pth")
    parser.add_argument(
        "--source", choices=list(SOURCES), help="where it comes from (default: recognized)"
    )
    parser.add_argument(
        "--ws",
        action=argparse.BooleanOptionalAction,
        help="whether the convolutions were standardized in training (default: as the source says)",
    )
    parser.add_argument(
        "--minibatch",
        type=int,
        metavar="N",
        help="images that batch statistics were taken over, a GPU's (default: from SN's file name)",
    )
    parser.add_argument(
        "--batch-average-count",
        type=int,
        metavar="K",
        help="SN's running statistics are sums over K mini-batches: divide them",
    )
    parser.add_argument(
        "--stride-in-1x1",
        action=argparse.BooleanOptionalAction,
        help="where bottlenecks have their stride (default: as mmdetection's config in the file "
        "says, else in the 3x3)",
    )
    parser.add_argument(
        "--input-format", choices=["RGB", "BGR"], help="order of colours (default: as the stride's)"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--pixel-{name}",
            type=float,
            nargs=3,
            metavar="X",
            help="in 0..255, in the order of --input-format (default: as the stride's, else "
            "ImageNet's in RGB)",
        )
    parser.add_argument(
        "--fold-input",
        action="store_true",
        help="make the weights take RGB with ImageNet's deviation, whatever they took",
    )
    parser.add_argument(
        "--backbone-only", action="store_true", help="leave the neck and heads of a detector out"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read objects other than tensors, which runs code of the file's choice",
    )
    parser.add_argument("--quiet", action="store_true", help="no line for each key")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, print the report; exit with a message where it cannot be done."""
    options = vars(_parser().parse_args(argv))
    quiet, output = options.pop("quiet"), options.pop("output")
    try:
        conversion = convert_weights(options.pop("input"), output, **options)
    except (OSError, ValueError) as error:
        sys.exit(f"convert_weights.py: error: {error}")
    print(conversion.summary() if quiet else conversion.report())
    print(f"written:      {output}, for train.init_checkpoint or MODEL.WEIGHTS")


if __name__ == "__main__":
    main()
