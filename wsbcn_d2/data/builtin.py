"""Registration of the embedded dataset: ``digits_train`` and ``digits_val``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .digits import CLASS_NAMES, SPLITS, annotation_file, build_digits, cache_root, digits_folder

__all__ = ["register_digits"]

# One colour (RGB) a class, far apart from each other, for detectron2's Visualizer.
_THING_COLORS = [
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (0, 128, 128),
]


def _load(split: str, name: str, root: Path) -> list[dict[str, Any]]:
    folder = build_digits(root)
    return load_coco_json(str(annotation_file(folder, split)), str(folder / split), name)


def register_digits() -> None:
    """Register ``digits_train`` and ``digits_val`` with detectron2; build nothing.

    Calling it again changes nothing, unless ``WSBCN_D2_CACHE`` has changed in between: then
    the two names move to the new folder. Loading either name (``DatasetCatalog.get``, hence
    every detectron2 data loader) builds the dataset if it is absent. ``COCOEvaluator`` opens
    the annotation file when it is constructed: call ``build_digits()`` before, if no loader
    of the dataset has been made yet.

    The masks are run lengths, so training needs ``INPUT.MASK_FORMAT: "bitmask"``
    (lazy configs: ``instance_mask_format="bitmask"``).

    Raises:
        AssertionError: from detectron2, if other code has registered one of the names.
    """
    root = cache_root()
    folder = digits_folder(root)
    for split in SPLITS:
        name = f"digits_{split}"
        json_file = str(annotation_file(folder, split))
        if name in DatasetCatalog:
            metadata = MetadataCatalog.get(name)
            if metadata.get("json_file") == json_file:
                continue
            if metadata.get("made_by") == __package__:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
        DatasetCatalog.register(name, partial(_load, split, name, root))
        MetadataCatalog.get(name).set(
            made_by=__package__,
            json_file=json_file,
            image_root=str(folder / split),
            evaluator_type="coco",
            thing_classes=list(CLASS_NAMES),
            thing_colors=list(_THING_COLORS),
            # load_coco_json sets the same map; an evaluator may need it before any loading.
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASS_NAMES))},
        )
