"""Export a trained detector for another runtime, and check the file against the model.

torchscript and onnx hold the whole detector, at any image size; torch-export the backbone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2
from wsbcn_d2.deploy import FORMATS, export_detector, fold_model, load_detector
from wsbcn_d2.errors import exit_with_message

__all__ = ["main"]

EPILOG = """
examples:

  $ python tools/export_model.py --config-file output/mine/config.yaml \\
        --weights output/mine/model_final.pth --format onnx mine/images/*.jpg

  the weights standardized and the affine norms folded first, to a file of that name
    $ python tools/export_model.py --config-file output/mine/config.yaml \\
        --weights output/mine/model_final.pth --fold --format torchscript \\
        --output mine.ts mine/images/*.jpg
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="a run's config.yaml, or a recipe")
    parser.add_argument("--weights", default="", help="default: the config's")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="default: onnx")
    parser.add_argument("--output", default="", metavar="FILE", help="default: model.EXTENSION")
    parser.add_argument("--fold", action="store_true", help="as fold_model.py does, first")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="to trace with and to compare on, of several sizes; something must be detected in one",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Load, export, compare."""
    args = _parser().parse_args(argv)
    output = args.output or f"model{FORMATS[args.format]}"
    with exit_with_message("export_model.py"):
        detector = load_detector(args.config_file, args.weights, args.opts, args.device)
        if args.fold:
            detector.model = fold_model(detector.model).model
        images = [detector.tensor(detector.read(p)) for p in args.images]
        differences = export_detector(detector, images, args.format, output)
    width = max(map(len, differences))
    for name, value in differences.items():
        print(f"{name:<{width}}  differs by {value:.1e} at most, on {len(images)} images")
    print(f"written: {output}")


if __name__ == "__main__":
    main()
