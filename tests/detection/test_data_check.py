"""The datasets of a run, looked over before it: what is asked of them, and how it is told."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tests.engine.tiny_run import LAZY_CONFIG, ROOT, make_dataset, train_net
from wsbcn_d2.data.findings import Needs
from wsbcn_d2.detection.data_check import dataset_needs
from wsbcn_d2.engine import ConfigError, load_config, read_config
from wsbcn_d2.engine.command_line import check_data
from wsbcn_d2.errors import UserError
from wsbcn_d2.recipes import config_file

ANNOTATIONS = Path("coco", "annotations", "instances_train2017.json")


def needs(name, split="train", *overrides):
    return dataset_needs(read_config(load_config(str(config_file(name)), list(overrides))), split)


def test_what_a_lazy_config_needs():
    key = "model.roi_heads.num_classes"
    assert needs("quick/mask_rcnn_r18_fpn_ws_gn") == Needs(
        num_classes=10, num_classes_key=key, masks=True, mask_format="bitmask"
    )
    assert needs("quick/mask_rcnn_r18_fpn_ws_gn", "test") == Needs(
        training=False, num_classes=10, num_classes_key=key, masks=True, coco_evaluation=True
    )
    assert needs("finetune/keypoint_rcnn_r50_fpn_ws_gn_1x") == Needs(
        num_classes=1, num_classes_key=key, mask_format="polygon", num_keypoints=17,
        min_keypoints=1,
    )  # fmt: skip
    for recipe in ("retinanet_r50_fpn_ws_gn_1x", "fcos_r50_fpn_ws_gn_1x"):
        assert needs(f"finetune/{recipe}") == Needs(
            num_classes=80, num_classes_key="model.num_classes", mask_format="polygon"
        )
    assert needs("finetune/cascade_mask_rcnn_r50_fpn_ws_gn_1x").masks
    assert needs("finetune/panoptic_fpn_r50_ws_gn_1x").num_classes == 80
    assert needs("finetune/faster_rcnn_r50_c4_gn_120k").num_classes == 80
    quick = "quick/mask_rcnn_r18_fpn_ws_gn"
    assert needs(quick, "train", "train.bad_data.action=skip").skip_bad
    assert not needs(quick, "train", "dataloader.train.dataset.filter_empty=False").filter_empty
    assert not needs(quick, "test", "dataloader.evaluator.tasks=[bbox]").masks


def yaml_needs(name, split="train", *overrides):
    from detectron2 import model_zoo

    cfg = load_config(model_zoo.get_config_file(name), list(overrides))
    return dataset_needs(read_config(cfg), split)


def test_what_a_yaml_config_needs():
    key = "MODEL.ROI_HEADS.NUM_CLASSES"
    train = yaml_needs("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    assert (train.num_classes, train.num_classes_key, train.masks) == (80, key, True)
    assert train.training and train.mask_format == "polygon" and train.filter_empty
    keypoints = yaml_needs("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "test")
    assert (keypoints.num_classes, keypoints.num_keypoints, keypoints.training) == (1, 17, False)
    retinanet = yaml_needs("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    assert retinanet.num_classes_key == "MODEL.RETINANET.NUM_CLASSES" and not retinanet.masks
    assert yaml_needs("COCO-Detection/rpn_R_50_FPN_1x.yaml").num_classes is None


def test_a_mapper_that_leaves_out_what_the_model_needs_is_refused():
    message = r"dataloader\.train\.mapper\.use_instance_mask must be True, as the model has a"
    with pytest.raises(ConfigError, match=message):
        needs(
            "quick/mask_rcnn_r18_fpn_ws_gn", "train",
            "dataloader.train.mapper.use_instance_mask=False",
        )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_dataset(folder)
    (folder / "tiny.py").write_text(LAZY_CONFIG)
    # As tiny.py, on sets whose classes their files alone name.
    (folder / "mine.py").write_text(
        LAZY_CONFIG
        + f"""
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

for split in ("train", "val"):
    root, name = {str(folder / "coco")!r}, f"mine_{{split}}"
    file = f"{{root}}/annotations/instances_{{split}}2017.json"
    if name not in DatasetCatalog:
        register_coco_instances(name, {{}}, file, f"{{root}}/{{split}}2017")
dataloader.train.dataset.names = "mine_train"
dataloader.test.dataset.names = "mine_val"
"""
    )
    yield folder
    for name in ("mine_train", "mine_val"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def changed(folder):
    """Change the training annotations for one test."""
    file = folder / ANNOTATIONS
    before = file.read_text()

    def change(function):
        content = json.loads(before)
        function(content)
        file.write_text(json.dumps(content))

    yield change
    file.write_text(before)


def test_an_error_ends_the_command_before_any_process_is_started(folder, changed):
    def change(content):
        for annotation in content["annotations"][:3]:
            del annotation["segmentation"]
        content["annotations"][5]["bbox"][2] = 0

    changed(change)
    result = train_net(
        "--config-file", "tiny.py", "--num-gpus", "2", datasets=folder, cwd=folder
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stdout
    assert result.stdout.endswith(
        f"train_net.py: error: dataset 'coco_2017_train', {folder / ANNOTATIONS}:\n"
        "  error: 3 of 16 annotations have no segmentation, which the model's mask head needs "
        "(id 1, 2, 3)\n"
        "  warning: 1 of 16 annotations have a bbox [x, y, width, height] that is empty, and are "
        "left out (id 6)\n"
    )
    assert not (folder / "output").exists()


def test_under_torchrun_one_process_tells(folder, changed):
    changed(lambda content: content.pop("categories"))
    result = train_net(
        "--config-file", "tiny.py", "train.output_dir=torchrun", datasets=folder, cwd=folder,
        runner=("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
    )  # fmt: skip
    assert result.returncode == 1
    # torchrun's summary may have it once more.
    assert "error: has no 'categories'; it has 'info', 'images', 'ann" in result.stdout
    assert result.stdout.count("train_net.py: error: ") <= 1


def check(folder, *options, config="mine.py", eval_only=False):
    """What is done before any process is started."""
    cfg = load_config(str(folder / config), [f"train.output_dir={folder}", *options])
    check_data(read_config(cfg), argparse.Namespace(eval_only=eval_only))


def test_what_training_can_go_on_with_is_one_warning_of_the_log(folder, changed, caplog):
    check(folder)
    assert not caplog.records and not (folder / "log.txt").exists()

    def change(content):
        content["annotations"][5]["bbox"][2] = 0
        content["annotations"][7]["iscrowd"] = content["annotations"][6]["iscrowd"] = 1

    changed(change)
    check(folder)
    log = (folder / "log.txt").read_text()
    assert "The run goes on with these flaws of its data:\ndataset 'mine_train', " in log
    for message in ("1 of 16 annotations have a bbox", "1 of 8 images have nothing to be trained"):
        assert log.count(f"  warning: {message}") == 1
    assert log.count("WARNING") == 1


def test_too_few_classes_name_the_key(folder):
    message = r"has 80 classes .* but model.roi_heads.num_classes is 3; set it to 80"
    with pytest.raises(UserError, match=message):
        check(folder, "model.roi_heads.num_classes=3")


def rename(content, *names):
    for category, name in zip(content["categories"], names, strict=False):
        category["name"] = name


def test_classes_that_differ_between_training_and_evaluation(folder, changed):
    changed(lambda content: rename(content, "bicycle", "person"))
    message = r"'mine_train', in the same order: number 0 is 'person', and 'bicycle' there"
    with pytest.raises(UserError, match=message) as error:
        check(folder)
    source, *lines = str(error.value).splitlines()
    assert source.startswith("dataset 'mine_val', ") and len(lines) == 1
    check(folder, eval_only=True)  # which does not look at the training data
    changed(lambda content: content["categories"].append({"id": 99, "name": "cup"}))
    with pytest.raises(UserError, match="has 80 classes, and 'mine_train' has 81"):
        check(folder, "model.roi_heads.num_classes=81")
    changed(lambda content: rename(content, "somebody"))
    check(folder)
    assert "number 0 is 'person', and 'somebody' there" in (folder / "log.txt").read_text()


def first(content, kind, **values):
    content[kind][0].update(values)


def every(content, **values):
    for annotation in content["annotations"]:
        annotation.update(values)


MISTAKES = {
    "no_categories": (lambda c: c.pop("categories"), "has no 'categories'"),
    "no_width": (lambda c: first(c, "images", width=None), r"1 of 8 images have no 'width' \(id 1"),
    "category_unknown": (lambda c: first(c, "annotations", category_id=500), r"a category_id that"),
    "annotation_id_twice": (lambda c: first(c, "annotations", id=2), r"annotations have an id"),
    "image_id_twice": (lambda c: first(c, "images", id=2), r"1 of 8 images have an id that"),
    "mask_missing": (lambda c: every(c, segmentation=None), "16 of 16 annotations have no segm"),
    "mask_of_four_numbers": (lambda c: every(c, segmentation=[[1, 1, 9, 9]]), "8 of 8 images have"),
    "crowd_only": (lambda c: every(c, iscrowd=1), "there are 16 annotations, 16 are crowds"),
    "no_annotations": (lambda c: c.update(annotations=[]), "there are 0 annotations"),
    "box_nan": (lambda c: first(c, "annotations", bbox=[float("nan"), 1, 9, 9]), "not four finite"),
    "truncated": (lambda c: first(c, "images", file_name="cut.png"), r"cut\.png \(image id 1\): "),
    "of_another_size": (lambda c: first(c, "images", file_name="turned.png"), "annotations say"),
    "missing": (
        lambda c: first(c, "images", file_name="nowhere.png"),
        "1 of 8 image files are not",
    ),
    "num_classes": (lambda c: None, "model.roi_heads.num_classes is 3; set it to 80"),
}


@pytest.mark.parametrize("name", [*MISTAKES, "cut_off"])
def test_the_command_ends_with_one_message(folder, changed, monkeypatch, capfd, name):
    change, message = MISTAKES.get(name, (lambda c: None, "is cut off, or is no valid JSON"))
    changed(change)
    if name == "cut_off":
        file = folder / ANNOTATIONS
        file.write_text(file.read_text()[:-40])
    images = folder / "coco" / "train2017"
    with Image.open(images / "000000000001.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).resize((32, 64)).save(images / "turned.png")
    (images / "cut.png").write_bytes((images / "000000000001.png").read_bytes()[:300])
    options = ["--config-file", str(folder / "mine.py"), f"train.output_dir={folder / 'refused'}"]
    if name == "num_classes":
        options.append("model.roi_heads.num_classes=3")
    monkeypatch.setattr(sys, "argv", ["train_net.py", *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")
    # Python prints a text, and exits with status 1.
    assert isinstance(end.value.code, str)
    assert re.search(message, end.value.code), end.value.code
    assert end.value.code.startswith("train_net.py: error: dataset 'mine_train', ")
    assert end.value.code.count("\n") < 4
    assert "Traceback" not in capfd.readouterr().err
    assert not (folder / "refused").exists()
