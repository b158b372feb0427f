"""The project's own script and config train and evaluate, on small images and a narrow network."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from PIL import Image

from tests.annotated_images import NUM_STUFF, annotated_images
from wsbcn_d2 import unregister_norms
from wsbcn_d2.checkpoint.norm_kinds import describe_norms

PROJECT = Path(__file__).resolve().parents[1]
CONFIG = PROJECT / "configs" / "deeplab_v3_plus_R_50_syncsn_ws.yaml"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("_deeplab_micro_batch", PROJECT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    unregister_norms()  # what an earlier test did; the script registers them itself
    return module


@pytest.fixture
def dataset(tmp_path):
    """Images of one size, as Cityscapes has: the head pools over the size of the crop."""
    name = "deeplab_micro_batch"
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
    return default_argument_parser().parse_args(
        [
            *("--config-file", str(CONFIG), "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output)),
            *("DATASETS.TRAIN", f"('{dataset}',)", "DATASETS.TEST", f"('{dataset}',)"),
            *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
            *("INPUT.CROP.SIZE", "(96, 128)", *inputs, *narrow, *more),
        ]
    )


def test_trains_and_evaluates_with_syncsn_and_ws(script, dataset, tmp_path):
    built = []
    script.Trainer.build_model = classmethod(
        lambda cls, cfg, build=script.Trainer.build_model: built.append(build(cfg)) or built[-1]
    )
    script.main(arguments(dataset, tmp_path / "output"))
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    assert metrics["total_loss"] > 0
    assert 0 <= metrics["sem_seg/mIoU"] <= 100

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
    evaluated = script.main(again)["sem_seg"]["mIoU"]
    assert evaluated == pytest.approx(metrics["sem_seg/mIoU"])


def test_ws_is_a_choice_of_the_config(script, dataset, tmp_path):
    args = arguments(dataset, tmp_path / "output", "MODEL.WSBCN.STANDARDIZE", "False")
    args.eval_only = True
    built = []
    script.Trainer.build_model = classmethod(
        lambda cls, cfg, build=script.Trainer.build_model: built.append(build(cfg)) or built[-1]
    )
    script.main(args)
    assert not any(describe_norms(built[0])["convs"].values())


def test_training_images_have_the_size_of_the_crop(script, dataset, tmp_path):
    crop = ("INPUT.CROP.SIZE", "(64, 80)")
    loader = script.Trainer.build_train_loader(
        script.load_config(arguments(dataset, tmp_path, *crop))
    )
    for image in next(iter(loader)):
        assert image["image"].shape == (3, 64, 80)
        assert image["sem_seg"].shape == (64, 80)
