"""Loaders of a list of records: one for training, one for the test set, and the accuracy."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from omegaconf import OmegaConf
from torchvision.transforms import v2

from projects.classification.classification import ClassificationMapper, TopKEvaluator


def loaders(train, test, total_batch_size, augmentations, resizing=(), num_workers=4):
    """``dataloader`` of a recipe.

    Args:
        train: the training set, a call of `data`; also `test`.
        test: the test set.
        total_batch_size: images a step.
        augmentations: transforms of the training images.
        resizing: transforms of the test images.
        num_workers: of each loader of each process.
    """
    dataloader = OmegaConf.create()
    dataloader.train = L(build_detection_train_loader)(
        dataset=train,
        mapper=L(ClassificationMapper)(transforms=L(v2.Compose)(transforms=list(augmentations))),
        total_batch_size=total_batch_size,
        aspect_ratio_grouping=False,
        num_workers=num_workers,
    )
    dataloader.test = L(build_detection_test_loader)(
        dataset=test,
        mapper=L(ClassificationMapper)(
            transforms=L(v2.Compose)(transforms=list(resizing) or [L(v2.Identity)()])
        ),
        batch_size=50,
        num_workers=num_workers,
    )
    dataloader.evaluator = L(TopKEvaluator)(ks=(1, 5))
    return dataloader
