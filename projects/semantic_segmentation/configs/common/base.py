"""Options and SGD of all recipes, the poly schedule, and loaders of a registered dataset."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import SemSegEvaluator
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from omegaconf import OmegaConf

from projects.semantic_segmentation.semantic_segmentation import RandomScale, SegmentationMapper
from wsbcn_d2 import get_config
from wsbcn_d2.data.label_maps import read_label_map

train = get_config("common/train").train
optimizer = get_config("common/optim").optimizer


def poly(warmup_length=0.0):
    """``(1 - t) ** 0.9``, with a linear warm-up over this share of the training.

    A warm-up of at least an iteration: the paper's schedules have none.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(PolynomialDecayParamScheduler)(base_value=1.0, power=0.9),
        warmup_length=warmup_length,
        warmup_factor=0.01,
    )


def random_crops(crop, low=0.5, high=2.0):
    """Random scales, flips and square crops; what a crop lacks is padded and does not count.

    Args:
        crop: pixels a side.
        low: the smallest scale.
        high: the largest scale.
    """
    return [
        L(RandomScale)(low=low, high=high),
        L(T.RandomFlip)(),
        L(T.FixedSizeCrop)(crop_size=(crop, crop), pad_value=124.0, seg_pad_value=255),
    ]


def loaders(train_set, test_set, num_classes, augmentations, total_batch_size, num_workers=4):
    """``dataloader`` of a recipe.

    Args:
        train_set: name of the training set; also `test_set`.
        test_set: name of the test set.
        num_classes: of both.
        augmentations: of the training images.
        total_batch_size: images a step.
        num_workers: of each loader of each process.
    """
    dataloader = OmegaConf.create()
    dataloader.train = L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names=train_set, filter_empty=False),
        mapper=L(SegmentationMapper)(
            augmentations=augmentations, is_train=True, num_classes=num_classes
        ),
        total_batch_size=total_batch_size,
        aspect_ratio_grouping=False,
        num_workers=num_workers,
    )
    dataloader.test = L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names=test_set, filter_empty=False),
        mapper=L(SegmentationMapper)(augmentations=[], is_train=False, num_classes=num_classes),
        num_workers=num_workers,
    )
    dataloader.evaluator = L(SemSegEvaluator)(
        dataset_name="${..test.dataset.names}", sem_seg_loading_fn=read_label_map, output_dir=None
    )
    return dataloader
