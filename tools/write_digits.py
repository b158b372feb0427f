"""Write the embedded digits as a labelling tool would export them: JPEG files and labels."""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2
from wsbcn_d2.data.digits import CLASS_NAMES, SPLITS, annotation_file, build_digits
from wsbcn_d2.errors import UserError, exit_with_message

__all__ = ["main"]

EPILOG = """
examples:

  $ python tools/write_digits.py mine
  $ python tools/write_digits.py mine --format yolo --images 50
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="to be made")
    parser.add_argument("--format", choices=list(_WRITERS), default="coco", help="default: coco")
    parser.add_argument(
        "--images",
        type=int,
        default=400,
        help="of the training data, 1 to 400 (default: 400); the 100 of the validation data follow",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder."""
    args = _parser().parse_args(argv)
    folder = Path(args.folder)
    with exit_with_message("write_digits.py"):
        if folder.exists():
            raise UserError(f"{folder} exists already")
        if not 1 <= args.images <= SPLITS["train"]:
            raise UserError(f"--images is {args.images}, but must be from 1 to {SPLITS['train']}")
        digits = build_digits()
        for split in SPLITS:
            content = json.loads(annotation_file(digits, split).read_text())
            if split == "train":
                content["images"] = content["images"][: args.images]
            kept = {image["id"] for image in content["images"]}
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
            images = folder / _IMAGES[args.format].format(split)
            images.mkdir(parents=True, exist_ok=True)  # VOC has one for both
            for image in content["images"]:
                with Image.open(digits / split / image["file_name"]) as opened:
                    image["file_name"] = f"{split}_{image['id']:03d}.jpg"
                    opened.save(images / image["file_name"], quality=95)
            _WRITERS[args.format](folder, split, content)
    print(f"{folder}: {args.images} training and {SPLITS['val']} validation images")


def _write_coco(folder: Path, split: str, content: dict[str, Any]) -> None:
    file = folder / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def _by_image(content: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return [(image, found[image["id"]]) for image in content["images"]]


def _write_voc(folder: Path, split: str, content: dict[str, Any]) -> None:
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    stems = []
    for image, objects in _by_image(content):
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = image["file_name"]
        size = ET.SubElement(root, "size")
        for side in ("width", "height"):
            ET.SubElement(size, side).text = str(image[side])
        for annotation in objects:
            element = ET.SubElement(root, "object")
            ET.SubElement(element, "name").text = CLASS_NAMES[annotation["category_id"] - 1]
            box = ET.SubElement(element, "bndbox")
            x, y, w, h = annotation["bbox"]
            # VOC counts pixels from 1, and the last one belongs to the box.
            for key, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h)):
                ET.SubElement(box, key).text = str(value)
        stems.append(Path(image["file_name"]).stem)
        ET.ElementTree(root).write(folder / "Annotations" / f"{stems[-1]}.xml")
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def _write_yolo(folder: Path, split: str, content: dict[str, Any]) -> None:
    labels = folder / "labels" / split
    labels.mkdir(parents=True)
    for image, objects in _by_image(content):
        lines = []
        for annotation in objects:
            x, y, w, h = annotation["bbox"]
            shares = (
                *((x + w / 2) / image["width"], (y + h / 2) / image["height"]),
                *(w / image["width"], h / image["height"]),
            )
            number = annotation["category_id"] - 1
            lines.append(" ".join([str(number), *(f"{share:.6f}" for share in shares)]))
        file = labels / Path(image["file_name"]).with_suffix(".txt").name
        file.write_text("".join(line + "\n" for line in lines))
    text = f"train: images/train\nval: images/val\nnames: {list(CLASS_NAMES)}\n"
    (folder / "data.yaml").write_text(text)


_IMAGES = {"coco": "{}", "voc": "JPEGImages", "yolo": "images/{}"}
_WRITERS: dict[str, Callable[[Path, str, dict[str, Any]], None]] = {
    "coco": _write_coco,
    "voc": _write_voc,
    "yolo": _write_yolo,
}


if __name__ == "__main__":
    main()
