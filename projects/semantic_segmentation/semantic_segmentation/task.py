"""What the engine has to know of semantic segmentation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
)
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler
from PIL import Image
from torch.optim import Optimizer

from wsbcn_d2.data.label_maps import read_label_map
from wsbcn_d2.engine import RunConfig, Task
from wsbcn_d2.errors import UserError

__all__ = ["SemanticSegmentation"]


class SemanticSegmentation(Task):
    """Registered datasets with label maps: lazy configs, and yaml ones of detectron2's DeepLab."""

    metrics = ("mIoU", "pACC", "mACC", "fwIoU")

    def add_config(self, cfg: CfgNode) -> None:
        add_deeplab_config(cfg)

    def build_lr_scheduler(self, cfg: CfgNode, optimizer: Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    def train_loader_arguments(self, cfg: CfgNode) -> dict[str, Any]:
        sizes = (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN)
        augmentations = [T.ResizeShortestEdge(*sizes, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)]
        if cfg.INPUT.CROP.ENABLED:
            crop = cfg.INPUT.CROP
            area = (crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
            augmentations.append(T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, *area))
        augmentations.append(T.RandomFlip())
        mapper = DatasetMapper(cfg, is_train=True, augmentations=augmentations)
        arguments: dict[str, Any] = build_detection_train_loader.from_config(cfg, mapper=mapper)
        return arguments

    def build_evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
        return SemSegEvaluator(
            dataset_name, output_dir=output_dir, sem_seg_loading_fn=read_label_map
        )

    def check_data(self, config: RunConfig, splits: Sequence[str]) -> None:
        """Compare the classes with the model's, and each label map's size with its image's.

        Raises:
            UserError: they differ, or a file is not there; with the file.
        """
        key, num_classes = config.find(
            "model.sem_seg_head.num_classes", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
        )
        for split in splits:
            for name in config.dataset_names(split):
                classes = MetadataCatalog.get(name).stuff_classes
                if len(classes) != num_classes:
                    raise UserError(
                        f"dataset {name!r} has {len(classes)} classes, but {key} is {num_classes}"
                    )
                for record in DatasetCatalog.get(name):
                    _check_files(name, record["file_name"], record["sem_seg_file_name"])

    def plot_predictions(self, model: Any, config: RunConfig, output: str) -> None:
        # Imported here: matplotlib takes a second, which nothing else waits for.
        from .plots import plot_predictions

        source = config.first_test_set()
        if source is not None and config.options.vis.num_images > 0:
            name, mapper = source
            plot_predictions(model, name, mapper, output, config.options.vis.num_images)


def _check_files(dataset: str, image_file: str, label_file: str) -> None:
    sizes = []
    for path in (image_file, label_file):
        if not os.path.isfile(path):
            raise UserError(f"dataset {dataset!r}: no file {path}")
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except OSError as error:
            raise UserError(f"dataset {dataset!r}: {path} is no image: {error}") from error
    if sizes[0] != sizes[1]:
        raise UserError(
            f"dataset {dataset!r}: label map {label_file} has the size {sizes[1]}, its image "
            f"{image_file} {sizes[0]}"
        )
