"""Each kind of mistake in a dataset, on a small one that has no other."""

from __future__ import annotations

import copy
import json
import random
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as rle

from wsbcn_d2.data.check import check_coco_json, check_dataset
from wsbcn_d2.data.findings import Needs

WIDTH, HEIGHT = 64, 48
TRAIN = Needs(num_classes=2, masks=True, mask_format="polygon", num_keypoints=2, min_keypoints=1)
TEST = Needs(training=False, num_classes=2, masks=True, num_keypoints=2, coco_evaluation=True)


def clean() -> dict:
    """Four images of two objects each, with masks and two keypoints."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, 5):
        images.append({"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
        for category in (3, 7):
            x, y, w, h = (int(v) for v in rng.integers(4, 20, 4))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": category,
                    "iscrowd": 0,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "keypoints": [x, y, 2, x + w, y + h, 1],
                    "num_keypoints": 2,
                }
            )
    categories = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(1, 5):
        Image.new("RGB", (WIDTH, HEIGHT), (i, i, i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def look(folder, tmp_path):
    """Look a set over, given as content or as text; returns its findings, a line each."""

    def look(content, needs=TRAIN, **options):
        file = tmp_path / "annotations.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        report = check_coco_json(str(file), str(folder), needs, **options)
        source, *lines = str(report).splitlines()
        assert source == f"{file}:" and len(lines) == len(report.findings)
        assert report.has_errors() == any(line.startswith("  error: ") for line in lines)
        return lines

    return look


@pytest.mark.parametrize("needs", [TRAIN, TEST, Needs(), Needs(training=False)])
def test_nothing_is_found_in_a_clean_set(look, needs):
    assert look(clean(), needs) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(clean())[:-40], "is cut off, or is no valid JSON"),
        (json.dumps(clean())[:47], "is cut off, or is no valid JSON"),
        ('{"images": [1 2]}', r"error: is no valid JSON: .*line 1 column 15"),
        ("", "no valid JSON"),
        ("[]", "holds a list, not an object with 'images', 'annotations' and 'categories'"),
        ("{}", "has no 'images', 'categories', 'annotations'; it has nothing"),
        ('{"images": [], "categories": [], "annotations": []}', "'images' is empty"),
        ('{"images": {}, "categories": [], "annotations": []}', "'images' is no list"),
    ],
)
def test_a_file_that_holds_no_coco_set(look, text, message):
    assert_found(look(text), "error", message)


def test_a_file_that_cannot_be_read(tmp_path):
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere.json", "there is no such file"),
        (tmp_path / "latin.json", "cannot be read: 'utf-8'"),
    ):
        (tmp_path / "latin.json").write_bytes(b'"\xff"')
        assert message in str(check_coco_json(str(path), str(tmp_path), TRAIN))


def assert_found(lines, severity, *patterns):
    """The first line is of that severity and matches, and there is none of a worse one."""
    assert lines and lines[0].startswith(f"  {severity}: "), lines
    for pattern in patterns:
        assert re.search(pattern, lines[0]), (pattern, lines)


def first(content, kind="annotations", **values):
    """Change the first entry of a kind; ``...`` removes a key."""
    for key, value in values.items():
        if value is ...:
            del content[kind][0][key]
        else:
            content[kind][0][key] = value


def every(content, **values):
    for annotation in content["annotations"]:
        annotation.update(values)


RUNS = rle.encode(np.asfortranarray(np.ones((HEIGHT, WIDTH), np.uint8)))
RUNS = {"size": RUNS["size"], "counts": RUNS["counts"].decode()}
OTHER_RUNS = {"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]}
SHORT_RUNS = {"size": [HEIGHT, WIDTH], "counts": [0, 5]}
ERRORS = {
    "image_without_id": (lambda c: first(c, "images", id=...), "1 of 4 images have no 'id'"),
    "image_id_twice": (lambda c: first(c, "images", id=2), r"images have an id.*\(id 2\)"),
    "no_width": (lambda c: first(c, "images", width=...), r"no 'width' \(id 1\)"),
    "no_file_name": (lambda c: first(c, "images", file_name=...), "no 'file_name'"),
    "file_name_a_number": (lambda c: first(c, "images", file_name=1), "file_name' that is no text"),
    "height_zero": (lambda c: first(c, "images", height=0), "no positive integer"),
    "height_text": (lambda c: first(c, "images", height="48"), "no positive integer"),
    "image_no_object": (lambda c: c["images"].append(3), "no JSON objects"),
    "category_id_twice": (lambda c: first(c, "categories", id=7), "1 of 2 categories have an id"),
    "category_without_name": (lambda c: first(c, "categories", name=...), "have no 'name'"),
    "no_bbox": (lambda c: first(c, bbox=...), "1 of 8 annotations have no 'bbox'"),
    "no_category": (lambda c: first(c, category_id=...), "have no 'category_id'"),
    "annotation_id_twice": (lambda c: first(c, id=2), r"annotations have an id.*\(id 2\)"),
    "category_unknown": (lambda c: first(c, category_id=5), r"among the categories \(3, 7\)"),
    "ignore": (lambda c: first(c, ignore=1), "'ignore', which detectron2 refuses"),
    "box_nan": (lambda c: first(c, bbox=[float("nan"), 1, 5, 5]), "not four finite numbers"),
    "box_inf": (lambda c: first(c, bbox=[0, 1, float("inf"), 5]), "not four finite numbers"),
    "box_short": (lambda c: first(c, bbox=[0, 1, 5]), "not four finite numbers"),
    "box_text": (lambda c: first(c, bbox=["a", 1, 5, 5]), "not four finite numbers"),
    "mask_flat": (lambda c: first(c, segmentation=[1, 1, 5, 1, 5, 5]), "neither a list of polygo"),
    "mask_nan": (lambda c: first(c, segmentation=[[1, 1, 5, 1, 5, float("nan")]]), "neither a li"),
    "runs_without_size": (lambda c: first(c, segmentation={"counts": "a"}), "neither a list of"),
    "runs_of_another_size": (lambda c: first(c, segmentation=OTHER_RUNS), "run lengths of another"),
    "runs_too_short": (lambda c: first(c, segmentation=SHORT_RUNS), "run lengths of another size"),
    "runs_for_polygons": (lambda c: first(c, segmentation=RUNS), "INPUT.MASK_FORMAT bitmask"),
    "mask_missing": (lambda c: first(c, segmentation=...), "no segmentation, which the model's ma"),
    "mask_empty": (
        lambda c: every(c, segmentation=[]),
        r"8 of 8 .* no segm.*\(id 1, 2, 3, 4, 5, …",
    ),
    "keypoints_missing": (lambda c: first(c, keypoints=...), "keypoint head needs 2"),
    "keypoints_too_many": (lambda c: first(c, keypoints=[1, 1, 2] * 3), "not 6 finite numbers"),
    "crowd_only": (
        lambda c: every(c, iscrowd=1),
        "4 of 4 images.*: there are 8 annotations, 8 are crowds",
    ),
    "no_annotations": (
        lambda c: c.update(annotations=[]),
        "4 of 4 images have nothing.*there are 0 anno",
    ),
    "mask_of_four_numbers": (
        lambda c: every(c, segmentation=[[1, 1, 9, 9]]),
        "4 of 4 .*, 8 have no polygon",
    ),
    "no_visible_keypoints": (lambda c: every(c, keypoints=[0] * 6), "4 of 4 images have nothing"),
    "no_categories": (lambda c: c.pop("categories"), "has no 'categories'; it has 'images', 'ann"),
    "too_many_classes": (
        lambda c: c["categories"].append({"id": 9, "name": "c"}),
        r"has 3 classes \(a, b, c\), but the model's num_classes is 2; set it to 3",
    ),
    "files_missing": (
        lambda c: first(c, "images", file_name="9.png"),
        r"1 of 4 image files are not there \(image id 1; the first: \S*9\.png\)",
    ),
    "image_of_another_size": (
        lambda c: first(c, "images", width=HEIGHT, height=WIDTH),
        rf"1\.png \(image id 1\): it is {WIDTH}x{HEIGHT} .*annotations say {HEIGHT}x{WIDTH}",
    ),
}
WARNINGS = {
    "image_id_unknown": (lambda c: first(c, image_id=99), "image_id that is not among the images"),
    "mask_of_four_numbers": (lambda c: first(c, segmentation=[[1, 1, 9, 9]]), "no polygon of at l"),
    "box_empty": (lambda c: first(c, bbox=[5, 5, 0, 5]), "that is empty, and are left out"),
    "box_negative": (lambda c: first(c, bbox=[5, 5, -3, 5]), "that is empty, and are left out"),
    "box_outside": (lambda c: first(c, bbox=[WIDTH, 5, 4, 5]), "outside their image"),
    "box_beyond": (lambda c: first(c, bbox=[5, 5, WIDTH, 9]), "reaches beyond their image"),
    "image_without_annotations": (
        lambda c: c["images"].append({**c["images"][0], "id": 5}),
        r"1 of 5 images have nothing to be trained on, and are left out \(id 5\)",
    ),
    "too_few_classes": (lambda c: (c["categories"].pop(), every(c, category_id=3)), "the last 1 "),
}
OF_EVALUATION = {
    "no_area": (lambda c: first(c, area=...), "error", "have no 'area'"),
    "no_iscrowd": (lambda c: first(c, iscrowd=...), "error", "have no 'iscrowd'"),
    "no_num_keypoints": (lambda c: first(c, num_keypoints=...), "error", "no 'num_keypoints'"),
    "crowd_without_mask": (
        lambda c: first(c, iscrowd=1, segmentation=...), "error", "have no segmentation"
    ),
    "id_0": (lambda c: first(c, id=0), "warning", "takes for no match"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(look, name):
    change, message = ERRORS[name]
    content = clean()
    change(content)
    assert_found(look(content), "error", message)


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings(look, name):
    change, message = WARNINGS[name]
    content = clean()
    change(content)
    assert_found(look(content), "warning", message)


@pytest.mark.parametrize("name", OF_EVALUATION)
def test_what_pycocotools_stumbles_over(look, name):
    change, severity, message = OF_EVALUATION[name]
    content = clean()
    change(content)
    assert_found(look(content, TEST), severity, message)
    assert look(content, TRAIN) == []


@pytest.mark.parametrize(
    "values", [{"segmentation": None}, {"segmentation": RUNS}, {"keypoints": None}]
)
def test_nothing_is_asked_for_that_the_model_does_not_need(look, values):
    content = clean()
    every(content, **values)
    assert look(content, Needs()) == []
    assert_found(look(content), "error")


def test_crowds_are_not_asked_for_masks(look):
    content = clean()
    first(content, iscrowd=1, segmentation=..., keypoints=...)
    assert look(content) == []


def test_ids_may_repeat_where_detectron2_lets_them(folder, tmp_path):
    content = clean()
    first(content, id=2)
    for name, found in (("minival2014.json", 0), ("val2014.json", 1)):
        (tmp_path / name).write_text(json.dumps(content))
        assert len(check_coco_json(str(tmp_path / name), str(folder), TRAIN).findings) == found


def test_what_is_found_never_raises_and_what_is_not_found_trains(look, folder, tmp_path):
    """The oracle is detectron2: what has no error is loaded and mapped by it, masks and all."""
    rng = random.Random(0)
    junk = [None, "x", -1, 0, 2, 1e400, float("nan"), [], {}, [[]], [1, 2], True, [[1, 2, 3, 4]]]
    mapper = DatasetMapper(
        is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True,
        use_keypoint=True,
    )  # fmt: skip
    trained = 0
    for _ in range(400):
        content = clean()
        for _ in range(rng.choice([1, 1, 2])):
            entry = rng.choice(content[rng.choice(["images", "annotations", "categories"])])
            key = rng.choice(list(entry))
            if rng.random() < 0.2:
                del entry[key]
            else:
                entry[key] = copy.deepcopy(rng.choice(junk))
        lines = look(content)
        if any("error" in line for line in lines):
            continue
        trained += 1
        file = str(tmp_path / "annotations.json")
        MetadataCatalog.pop("fuzzed", None)
        for record in load_coco_json(file, str(folder), "fuzzed"):
            instances = mapper(record)["instances"]
            assert len(instances) == 0 or (
                instances.has("gt_masks") and instances.gt_keypoints.tensor.shape[1:] == (2, 3)
            )
    assert 20 < trained < 300


@pytest.fixture
def registered(folder, tmp_path):
    names = []

    def register(content, **metadata):
        name = f"check_{len(names)}"
        names.append(name)
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content))
        register_coco_instances(name, metadata, str(file), str(folder))
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_registered_file(registered):
    assert not check_dataset(registered(clean()), TRAIN).findings
    content = clean()
    first(content, category_id=5)
    name = registered(content)
    report = check_dataset(name, TRAIN)
    assert f"dataset '{name}', " in str(report) and "category_id" in str(report)
    assert report.class_names == ["a", "b"]


def test_classes_other_than_those_registered(registered):
    assert not check_dataset(registered(clean(), thing_classes=["a", "b"]), TRAIN).findings
    report = check_dataset(registered(clean(), thing_classes=["b", "a"]), TRAIN)
    assert_found(str(report).splitlines()[1:], "error", "classes a, b, .* thing_classes b, a")


def dicts(folder):
    records = []
    for image in clean()["images"]:
        annotations = [
            {
                "bbox": np.array([5.0, 6.0, 20.0, 30.0]),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": category,
                "segmentation": masks,
            }
            for category, masks in enumerate(
                (np.ones((HEIGHT, WIDTH), bool), [np.array([5.0, 6.0, 20.0, 6.0, 20.0, 30.0])])
            )
        ]
        file = str(folder / image["file_name"])
        records.append({"file_name": file, "image_id": image["id"], "annotations": annotations})
    return records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: None, None),
        (lambda r: r[0]["annotations"][1].update(category_id=2), r"among the .*\(id 1\[1\]\)"),
        (lambda r: r[0]["annotations"][1].update(bbox=[1, 1, 0, 0]), r"empty, .*\(id 1\[1\]\)"),
        (lambda r: r[0]["annotations"][1].pop("segmentation"), "no segmentation"),
        (lambda r: r[0]["annotations"][1].pop("bbox_mode"), "KeyError: 'bbox_mode'"),
        (lambda r: r[0].update(file_name="nowhere.png"), "1 of 4 image files are not there"),
        (lambda r: r.clear(), "is empty"),
        (lambda r: [record["annotations"].clear() for record in r], "nothing to be trained on"),
    ],
)
def test_a_registered_function(folder, change, message):
    records = dicts(folder)
    change(records)
    DatasetCatalog.register("function", lambda: records)
    MetadataCatalog.get("function").thing_classes = ["a", "b"]
    try:
        report = check_dataset("function", Needs(num_classes=2, masks=True, mask_format="bitmask"))
    finally:
        DatasetCatalog.remove("function")
        MetadataCatalog.remove("function")
    if message is None:
        assert not report.findings
    else:
        assert_found(str(report).splitlines()[1:], report.findings[0].severity, message)


def test_a_registered_function_that_fails():
    DatasetCatalog.register("failing", lambda: {}["key"])
    try:
        report = check_dataset("failing", TRAIN)
    finally:
        DatasetCatalog.remove("failing")
    message = r"loading it raised KeyError: 'key' \(in .*test_check\.py:\d+\)"
    assert_found(str(report).splitlines()[1:], "error", message)


def test_the_embedded_dataset_is_clean():
    needs = Needs(num_classes=10, masks=True, mask_format="bitmask")
    assert not check_dataset("digits_train", needs).findings
    needs = Needs(training=False, num_classes=10, masks=True, coco_evaluation=True)
    assert not check_dataset("digits_val", needs).findings
