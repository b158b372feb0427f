"""A yaml config of detectron2's DeepLab trains and evaluates, with a narrow network."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from projects.semantic_segmentation.semantic_segmentation import SemanticSegmentation
from tests.annotated_images import NUM_STUFF, annotated_images
from tests.engine.tiny_training import differing, signal_at
from wsbcn_d2.checkpoint.norm_kinds import describe_norms
from wsbcn_d2.engine import argument_parser, load_config, main, read_config, run
from wsbcn_d2.engine.preemption import EXIT_STOPPED

PROJECT = Path(__file__).resolve().parents[1]
CONFIG = PROJECT / "configs" / "cityscapes" / "deeplab_v3_plus_R_50_syncsn_ws.yaml"
TASK = SemanticSegmentation()


@pytest.fixture
def dataset(tmp_path):
    """Images of one size, as Cityscapes has: the head pools over the size of the crop."""
    name = "deeplab_yaml"
    images = annotated_images(tmp_path)
    for image in images:
        photo = Image.open(image["file_name"]).convert("RGB").resize((128, 96))
        image["file_name"] = str(tmp_path / f"{image['image_id']}.png")
        photo.save(image["file_name"])
        labels = Image.open(image["sem_seg_file_name"]).resize((128, 96), Image.NEAREST)
        labels.save(image["sem_seg_file_name"])
        image.update(width=128, height=96)
    DatasetCatalog.register(name, functools.partial(list, images))
    MetadataCatalog.get(name).set(
        ignore_label=255, stuff_classes=[str(i) for i in range(NUM_STUFF)], evaluator_type="sem_seg"
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def arguments(dataset, output, *more):
    sizes = "MIN_SIZE_TRAIN", "(96, 112)", "MAX_SIZE_TRAIN", "256", "MIN_SIZE_TEST", "96"
    inputs = [f"INPUT.{word}" if word.isupper() else word for word in sizes]
    narrow = ["MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"]
    narrow += ["MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "32"]
    narrow += ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "54"]
    return argument_parser().parse_args(
        [
            *("--config-file", str(CONFIG), "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output)),
            *("DATASETS.TRAIN", f"('{dataset}',)", "DATASETS.TEST", f"('{dataset}',)"),
            *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
            *("INPUT.CROP.SIZE", "(96, 128)", *inputs, *narrow, *more),
        ]
    )


@pytest.fixture
def built(monkeypatch):
    """The models that are built from here on."""
    models, build = [], SemanticSegmentation.build_model

    def build_model(self, cfg):
        models.append(build(self, cfg))
        return models[-1]

    monkeypatch.setattr(SemanticSegmentation, "build_model", build_model)
    return models


def test_trains_and_evaluates_with_syncsn_and_ws(built, dataset, tmp_path):
    main(arguments(dataset, tmp_path / "output"), TASK)
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    assert metrics["total_loss"] > 0
    assert 0 <= metrics["sem_seg/mIoU"] <= 100
    log = (tmp_path / "output" / "log.txt").read_text().partition("Final evaluation:")[2]
    assert log.split()[:4] == ["mIoU", "pACC", "mACC", "fwIoU"]

    # A stem of one convolution and 52 more; 1 projection, 2 to fuse, 5 of ASPP. Without a norm, and
    # plain: ASPP's pooled branch (1 x 1 maps) and the predictor.
    found = describe_norms(built[0])
    assert Counter(found["norms"].values()) == {"SyncSN": 53 + 8}
    assert Counter(found["convs"].values()) == {True: 53 + 8, False: 2}

    weights = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)["model"]
    assert weights["backbone.stem.conv1.norm.running_mean"].any()

    again = arguments(
        dataset, tmp_path / "again", "MODEL.WEIGHTS", str(tmp_path / "output" / "model_final.pth")
    )
    again.eval_only = True
    evaluated = main(again, TASK)["sem_seg"]["mIoU"]
    assert evaluated == pytest.approx(metrics["sem_seg/mIoU"])


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(dataset, tmp_path):
    more = ("SOLVER.IMAGES_PER_GPU", "1", "SOLVER.MAX_ITER", "3", "DATASETS.TEST", "()")

    def train(output, resume=False):
        args = arguments(dataset, tmp_path / output, "SEED", "3", *more)
        args.resume = resume
        run(args, TASK)
        return torch.load(tmp_path / output / "model_final.pth", weights_only=True)

    whole = train("whole")
    with signal_at(1), pytest.raises(SystemExit) as stopped:
        train("stopped")
    assert stopped.value.code == EXIT_STOPPED
    assert differing(whole, train("stopped", resume=True)) == []
    assert whole["trainer"]["hooks"]["DataPosition"]["images_per_gpu"] == 1
    log = (tmp_path / "stopped" / "log.txt").read_text()
    assert "1 image(s) × 1 process(es) × 2 accumulated" in log


def test_ws_is_a_choice_of_the_config(dataset, tmp_path):
    args = arguments(dataset, tmp_path / "output", "MODEL.WSBCN.STANDARDIZE", "False")
    model = TASK.build_model(load_config(str(CONFIG), args.opts, TASK))
    assert not any(describe_norms(model)["convs"].values())


def test_training_images_have_the_size_of_the_crop(dataset, tmp_path):
    args = arguments(dataset, tmp_path, "INPUT.CROP.SIZE", "(64, 80)")
    config = read_config(load_config(str(CONFIG), args.opts, TASK), TASK)
    for image in next(iter(config.build_train_loader())):
        assert image["image"].shape == (3, 64, 80)
        assert image["sem_seg"].shape == (64, 80)
