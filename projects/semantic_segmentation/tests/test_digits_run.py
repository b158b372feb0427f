"""The digits' recipe, shortened: resume, evaluation, mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_api

from projects.semantic_segmentation.semantic_segmentation import (
    SegmentationMapper,
    SemanticSegmentation,
)
from tests.engine.tiny_training import assert_resumes_exactly
from wsbcn_d2.data.label_maps import read_label_map
from wsbcn_d2.engine import argument_parser, load_config, read_config
from wsbcn_d2.engine import run as run_engine
from wsbcn_d2.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PROJECT = ROOT / "projects/semantic_segmentation"
CONFIG = PROJECT / "configs/digits/digits_deeplab_v3_plus_r18_syncsn.py"
SHORT = (
    "train.max_iter=4",
    "train.checkpointer.period=2",
    "train.images_per_gpu=1",
    "train.vis.num_images=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
)


@pytest.fixture(scope="module")
def few_digits():
    """Six validation scenes under a name of their own."""
    name = "few_digits_sem_seg"
    records = DatasetCatalog.get("digits_sem_seg_val")[::17]
    metadata = MetadataCatalog.get("digits_sem_seg_val")
    DatasetCatalog.register(name, lambda: [dict(record) for record in records])
    MetadataCatalog.get(name).set(
        stuff_classes=metadata.stuff_classes, ignore_label=metadata.ignore_label
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def run(output, dataset, *flags):
    overrides = [*SHORT, f"dataloader.test.dataset.names={dataset}", f"train.output_dir={output}"]
    args = argument_parser().parse_args(["--config-file", str(CONFIG), *flags, *overrides])
    run_engine(args, SemanticSegmentation())


def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, few_digits):
    metrics = assert_resumes_exactly(
        lambda output, *flags: run(output, few_digits, *flags), tmp_path, "model_0000001.pth"
    )
    assert 0 < metrics["sem_seg/mIoU"] < 100


def test_digits_are_where_their_masks_are():
    record = DatasetCatalog.get("digits_sem_seg_val")[3]
    labels = read_label_map(record["sem_seg_file_name"])
    scene = next(r for r in DatasetCatalog.get("digits_val") if r["image_id"] == record["image_id"])
    masks = [mask_api.decode(a["segmentation"]).astype(bool) for a in scene["annotations"]]
    for mask, annotation in zip(masks, scene["annotations"], strict=True):
        assert (labels[mask] == annotation["category_id"] + 1).all()
    assert (labels[~np.any(masks, axis=0)] == 0).all()


def with_record(name, tmp_path, labels, **files):
    """A dataset of one image."""
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        **files,
    }
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(stuff_classes=[str(i) for i in range(11)], ignore_label=255)
    return record


@pytest.mark.parametrize(
    ("shape", "files", "message"),
    [
        ((20, 29), {}, r"label map .*labels.png has the size \(29, 20\), its image .* \(30, 20\)"),
        ((20, 30), {"sem_seg_file_name": "/none.png"}, "no file /none.png"),
    ],
)
def test_label_map_that_does_not_fit_is_one_message(tmp_path, shape, files, message):
    name = "one_misfit"
    with_record(name, tmp_path, np.zeros(shape, np.uint8), **files)
    try:
        cfg = load_config(str(CONFIG), [f"dataloader.train.dataset.names={name}"])
        task = SemanticSegmentation()
        with pytest.raises(UserError, match=message):
            task.check_data(read_config(cfg, task), ["train"])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_label_that_is_no_class_is_named(tmp_path):
    name = "one_label"
    record = with_record(name, tmp_path, np.full((20, 30), 11, np.uint8))
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    mapper = SegmentationMapper([], is_train=True, num_classes=11)
    with pytest.raises(
        ValueError, match=r"labels.png has the label 11, but labels go from 0 to 10"
    ):
        mapper(record)


def test_number_of_classes_that_the_data_has_not_is_one_message():
    cfg = load_config(str(CONFIG), ["model.sem_seg_head.num_classes=7"])
    task = SemanticSegmentation()
    message = "'digits_sem_seg_val' has 11 classes, but model.sem_seg_head.num_classes is 7"
    with pytest.raises(UserError, match=message):
        task.check_data(read_config(cfg, task), ["test"])
