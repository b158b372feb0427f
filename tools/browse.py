"""What training really sees: a page of its images, after augmentation, with boxes and masks."""

from __future__ import annotations

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2

# isort: split

import argparse
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BitMasks
from detectron2.structures.masks import polygons_to_bitmask
from PIL import Image
from pycocotools import mask as mask_api

from wsbcn_d2.config import load_config, read_config, resolve_config_file
from wsbcn_d2.deploy.detector import class_names
from wsbcn_d2.deploy.predict import draw
from wsbcn_d2.errors import UserError, exit_with_message
from wsbcn_d2.html_page import html_page, picture_tag

__all__ = ["main"]

EPILOG = """
examples:

  $ python tools/browse.py --config-file quick/mask_rcnn_r18_fpn_ws_gn --dataset mine
  $ python tools/browse.py --config-file output/mine/config.yaml --images 100 --seed 1
"""
_STYLE = """body { max-width: none } figure { display: inline-block; margin: 6px }
img { max-width: 480px; image-rendering: pixelated }"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="as for train_net.py")
    parser.add_argument("--dataset", default="", metavar="FOLDER", help="as for train_net.py")
    parser.add_argument("--images", type=int, default=24, help="default: 24")
    parser.add_argument("--seed", type=int, default=0, help="of order and augmentations")
    parser.add_argument("--output", default="browse.html", metavar="FILE", help="the page")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Load the first images of a training, draw them."""
    from wsbcn_d2 import data  # noqa: F401  registers what a config may name

    args = _parser().parse_args(argv)
    with exit_with_message("browse.py"):
        if args.images < 1:
            raise UserError(f"--images is {args.images}, but must be 1 or more")
        path = resolve_config_file(args.config_file)
        cfg = load_config(path, args.opts, dataset=args.dataset)
        config = read_config(cfg, world_size=1)
        names = class_names(cfg, config.dataset_names("train"))
        figures = []
        for sample in _samples(config.build_train_loader(args.seed, 0)):
            figures.append(_figure(sample, names, _image_format(cfg)))
            if len(figures) == args.images:
                break
    page = html_page(args.config_file, "\n".join(figures), _STYLE)
    Path(args.output).write_text(page, encoding="utf-8")
    print(f"{len(figures)} images: {args.output}")


def _samples(loader: Any) -> Iterator[dict[str, Any]]:
    for batch in loader:
        yield from batch


def _image_format(cfg: Any) -> str:
    return str(cfg.INPUT.FORMAT if "INPUT" in cfg else cfg.dataloader.train.mapper.image_format)


def _figure(sample: dict[str, Any], names: Sequence[str], image_format: str) -> str:
    image = sample["image"].numpy().transpose(1, 2, 0)
    image = np.ascontiguousarray(image if image_format == "RGB" else image[:, :, ::-1])
    objects = _objects(sample["instances"]) if "instances" in sample else []
    picture = Image.fromarray(draw(image, objects, names))
    file = Path(sample.get("file_name", "")).name
    caption = f"{file}: {image.shape[1]} × {image.shape[0]}, {len(objects)} objects"
    picture_html = picture_tag(picture, file)
    return f"<figure>{picture_html}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _objects(instances: Any) -> list[dict[str, Any]]:
    """The truth in the form of `predict`'s results, without a score."""
    height, width = instances.image_size
    found = []
    for i in range(len(instances)):
        x0, y0, x1, y1 = instances.gt_boxes.tensor[i].tolist()
        thing = {"category_id": int(instances.gt_classes[i]), "bbox": [x0, y0, x1 - x0, y1 - y0]}
        if instances.has("gt_masks"):
            masks = instances.gt_masks
            if isinstance(masks, BitMasks):
                bitmap = masks.tensor[i].numpy()
            else:
                bitmap = polygons_to_bitmask(masks.polygons[i], height, width)
            runs = mask_api.encode(np.asfortranarray(bitmap, dtype=np.uint8))
            thing["segmentation"] = {"size": [height, width], "counts": runs["counts"].decode()}
        found.append(thing)
    return found


if __name__ == "__main__":
    main()
