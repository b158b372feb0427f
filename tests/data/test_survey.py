"""tools/check_dataset.py: the whole of a set, on the code of the check before training."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.own_data import WRITERS, make_objects
from tests.test_setup import load_tool


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("WSBCN_D2_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def run(capsys, *words: str, status: int = 0) -> str:
    tool = load_tool("check_dataset")
    if status:
        with pytest.raises(SystemExit) as caught:
            tool.main(list(words))
        assert caught.value.code == status
    else:
        tool.main(list(words))
    return capsys.readouterr().out


def change_coco(folder, change) -> None:
    file = folder / "annotations" / "instances_default.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_counts_are_those_of_the_set(mine, capsys):
    scenes = make_objects(count=10)
    WRITERS["coco"](mine, scenes)
    train, val = json.loads(run(capsys, str(mine), "--masks", "--json"))
    assert train["counts"]["images"] + val["counts"]["images"] == 10
    for number, name in enumerate(("round", "square")):
        expected = sum(thing["category"] == number for s in scenes for thing in s["objects"])
        assert train["objects"][name] + val["objects"][name] == expected
    assert train["counts"]["with a mask"] == train["counts"]["objects"]
    assert not train["findings"] and not val["findings"]
    page = mine.parent / "report.html"
    assert "nothing found" in run(capsys, str(mine), "--html", str(page))
    assert page.read_text().count("Nothing found.") == page.read_text().count(">round") == 2


def test_odd_files_and_labels_are_found_with_pictures(mine, capsys, tmp_path):
    scenes = make_objects(count=12)
    WRITERS["csv"](mine, scenes)
    images = mine / "images"
    pixels = Image.open(images / "000.jpg")
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels.save(images / "000.jpg", exif=exif)
    Image.open(images / "001.jpg").convert("CMYK").save(images / "001.jpg")
    (images / "003.jpg").write_bytes((images / "002.jpg").read_bytes())
    lines = (mine / "boxes.csv").read_text().splitlines()
    sides = scenes[4]["pixels"].shape
    lines = [line for line in lines if not line.startswith("003.jpg")]
    lines += [
        f"003.jpg,{scenes[2]['pixels'].shape[1]},{scenes[2]['pixels'].shape[0]},round,9,9,20,20",
        f"004.jpg,{sides[1]},{sides[0]},round,5,5,7,30",
        f"004.jpg,{sides[1]},{sides[0]},round,500,500,520,520",
    ]
    (mine / "boxes.csv").write_text("\n".join(lines))
    page = tmp_path / "report.html"
    # With all in the training data: a set of its own to evaluate on.
    (tmp_path / "val").mkdir()
    WRITERS["csv"](tmp_path / "val", make_objects(seed=1, count=2))
    text = run(capsys, str(mine), "--val", str(tmp_path / "val"), "--html", str(page))
    for expected in (
        "1 of 12 images are CMYK: converted by Pillow",
        "1 of 12 images are turned by their EXIF orientation",
        "2 image files are copies of each other",
        f"objects are less than 4 pixels wide or high ({mine / 'boxes.csv'}:{len(lines) - 1})",
        f"outside their image, and are left out ({mine / 'boxes.csv'}:{len(lines)})",
    ):
        assert expected in text, text
    assert page.read_text().count("<img ") == 4


def test_leakage_is_an_error(mine, capsys):
    scenes = make_objects(count=4)
    for split in ("train", "val"):
        (mine / split).mkdir()
        WRITERS["voc"](mine / split, scenes[:3] if split == "train" else scenes[2:])
    text = run(capsys, str(mine), status=1)
    assert "error: 1 image files are in the training data too, byte for byte" in text


def test_every_file_is_decoded(mine, capsys):
    WRITERS["coco"](mine, make_objects(count=40))
    last = mine / "images" / "037.jpg"
    last.write_bytes(last.read_bytes()[:700])
    text = run(capsys, str(mine), status=1)
    assert "037.jpg" in text and "truncated" in text


def test_faults_of_the_labels_are_those_of_the_check_before_training(mine, capsys):
    WRITERS["coco"](mine, make_objects(count=10))
    change_coco(mine, lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]))
    change_coco(mine, lambda c: c["annotations"][1].pop("segmentation"))
    text = run(capsys, str(mine), "--masks", status=1)
    assert "have a bbox that is not four finite numbers (id 1)" in text
    assert "have no segmentation, which the model's mask head needs (id 2)" in text


def test_polygons_that_are_lost_or_enclose_nothing_are_told(mine, capsys):
    WRITERS["coco"](mine, make_objects(count=10))

    def change(content):
        content["annotations"][0]["segmentation"].append([3, 3, 9, 9])
        # Drawn there and back again, and never around.
        content["annotations"][1]["segmentation"] = [[3, 3, 9, 4, 12, 9, 9, 4]]
        size = [content["images"][0][key] for key in ("height", "width")]
        content["annotations"][2]["image_id"] = content["images"][0]["id"]
        runs = {"size": size, "counts": [size[0] * size[1]]}
        content["annotations"][2]["segmentation"] = runs

    change_coco(mine, change)
    text = run(capsys, str(mine))
    assert "have a polygon of fewer than three points beside others, and lose it (id 1)" in text
    assert "objects have a mask without area" in text and "(2, 3)" in text


def test_16_bit_images_are_told_with_the_rule(mine, capsys):
    scenes = make_objects(count=3)
    WRITERS["csv"](mine, scenes)
    text = (mine / "boxes.csv").read_text().replace("001.jpg", "001.png")
    (mine / "boxes.csv").write_text(text)
    height, width = scenes[1]["pixels"].shape[:2]
    values = np.full((height, width), 50000, np.uint16)
    Image.fromarray(values).save(mine / "images" / "001.png")
    assert "they are scaled to 8 bits by 255/65535" in run(capsys, str(mine))
