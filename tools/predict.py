"""Detect objects in images, folders and videos: pictures, and results in COCO's format."""

from __future__ import annotations

import argparse
import errno
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2
from wsbcn_d2.checkpoint.files import disk_error, replacing
from wsbcn_d2.deploy import Detector, load_detector
from wsbcn_d2.deploy.predict import Picture, draw, find_pictures, predict
from wsbcn_d2.errors import UserError, exit_with_message

__all__ = ["main"]

EPILOG = """
examples:

  $ python tools/predict.py --config-file output/mine/config.yaml \\
        --weights output/mine/model_final.pth --output predictions new_images

  images that are much larger than those of the training, in tiles of the training's size
    $ python tools/predict.py --config-file output/mine/config.yaml \\
        --weights output/mine/model_final.pth --output predictions --tile 1024 large.tif

The folder gets a picture of each image, coco_instances_results.json, and images.json, with which
pycocotools reads them: COCO("images.json").loadRes("coco_instances_results.json").
"""


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to below 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="a run's config.yaml, or a recipe")
    parser.add_argument("--weights", default="", help="default: the config's")
    parser.add_argument("--output", default="predictions", metavar="FOLDER")
    parser.add_argument("--threshold", type=_share, default=0.5, help="least score (default: 0.5)")
    parser.add_argument(
        "--tile", type=int, default=0, metavar="PIXELS", help="cut larger images into squares"
    )
    parser.add_argument(
        "--overlap", type=_share, default=0.2, help="of tiles, as a share of one (default: 0.2)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="results only")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("paths", nargs="+", metavar="IMAGE|FOLDER|VIDEO")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Detect in all that can be read; say what could not be."""
    args = _parser().parse_args(argv)
    with exit_with_message("predict.py"):
        detector = load_detector(args.config_file, args.weights, device=args.device)
        if args.tile:
            Image.MAX_IMAGE_PIXELS = None  # Pillow takes images beyond it for an attack
        output = Path(args.output)
        done = _Results(detector.classes)
        try:
            try:
                _predict_all(detector, args, output, done)
            finally:
                # What was done is kept, however it ends.
                if done.images:
                    _write_where_there_is_room(done, output)
        except OSError as error:
            raise UserError(disk_error(error.filename or str(output), error)) from error
        for fault in done.faults:
            print(f"predict.py: {fault}", file=sys.stderr)
        if not done.images:
            raise UserError(f"there was nothing to look at in {', '.join(args.paths)}")
    print(f"{len(done.results)} objects in {len(done.images)} images: {output}")


def _write_where_there_is_room(done: _Results, output: Path) -> None:
    """Write the results; on a full disk at the cost of the last pictures, which they can redraw."""
    while True:
        try:
            return done.write(output)
        except OSError as error:
            if error.errno != errno.ENOSPC or not done.pictures:
                raise
            done.pictures.pop().unlink(missing_ok=True)


class _Results:
    """What was found so far."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.images: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.pictures: list[Path] = []
        self._classes = classes

    def add(self, picture: Picture, image: np.ndarray, objects: list[dict[str, Any]]) -> None:
        number = len(self.images) + 1
        height, width = image.shape[:2]
        self.images.append(
            {"id": number, "file_name": picture.source, "height": height, "width": width}
        )
        # COCO's categories are counted from 1.
        self.results += [
            {"image_id": number, **thing, "category_id": thing["category_id"] + 1}
            for thing in objects
        ]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        count = max([len(self._classes), *(thing["category_id"] for thing in self.results)])
        names = [*self._classes, *map(str, range(len(self._classes), count))]
        categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
        listed = {"images": self.images, "categories": categories, "annotations": []}
        for name, content in (
            ("images.json", listed),
            ("coco_instances_results.json", self.results),
        ):
            with replacing(str(folder / name)) as file:
                file.write(json.dumps(content).encode())


def _predict_all(
    detector: Detector, args: argparse.Namespace, output: Path, done: _Results
) -> None:
    names: set[str] = set()
    with tqdm(desc="Detecting", unit="image", disable=None) as bar:
        for picture in _readable(detector, args.paths, done.faults):
            try:
                image = picture.read()
            except UserError as error:
                done.faults.append(str(error))
                continue
            objects = predict(
                detector, image, threshold=args.threshold, tile=args.tile, overlap=args.overlap
            )
            if not args.no_pictures:
                name = picture.name
                while name in names:  # a.jpg and a.png, or of two folders
                    name += "_"
                names.add(name)
                rgb = image if detector.image_format == "RGB" else image[:, :, ::-1]
                drawn = draw(rgb, objects, detector.classes)
                path = output / f"{name}.jpg"
                _save_jpeg(drawn, path)
                done.pictures.append(path)
            done.add(picture, image, objects)
            bar.update()


def _readable(detector: Detector, paths: Sequence[str], faults: list[str]) -> Iterator[Picture]:
    """The pictures of all paths; a path's fault ends that path only."""
    for path in paths:
        try:
            yield from find_pictures(detector, Path(path))
        except UserError as error:
            faults.append(str(error))


def _save_jpeg(image: np.ndarray, path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=90)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(str(path)) as file:
        file.write(buffer.getvalue())


if __name__ == "__main__":
    main()
