"""Each format gives the dataset it was written from, and its faults with file and line or id."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO

from tests.own_data import NAMES, WITH_MASKS, WRITERS, make_objects
from wsbcn_d2.data.check import check_dataset
from wsbcn_d2.data.findings import Needs
from wsbcn_d2.data.formats import read_own_data
from wsbcn_d2.engine import load_config, read_config, resolve_config_file
from wsbcn_d2.errors import ConfigError, UserError

RECIPE = "quick/mask_rcnn_r18_fpn_gn"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSBCN_D2_CACHE", str(tmp_path / "cache"))


def write(kind: str, folder: Path, count: int = 10) -> list[dict]:
    scenes = make_objects(count=count)
    folder.mkdir()
    WRITERS[kind](folder, scenes)
    return scenes


def read_back(own) -> dict[str, list[tuple]]:
    """File name to its objects: class name, box and polygon."""
    found = {}
    for split in (own.train, own.val):
        coco = COCO(split.json_file)
        for image in coco.loadImgs(coco.getImgIds()):
            objects = []
            for a in coco.loadAnns(coco.getAnnIds(image["id"])):
                name = coco.loadCats(a["category_id"])[0]["name"]
                x, y, w, h = a["bbox"]
                polygon = a.get("segmentation", [None])[0]
                objects.append((name, [x, y, x + w, y + h], polygon))
            found[Path(image["file_name"]).name] = objects
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_each_format_gives_what_was_written(kind, tmp_path, capsys):
    scenes = write(kind, tmp_path / "mine")
    own = read_own_data(str(tmp_path / "mine"))
    found = read_back(own)
    assert own.classes == NAMES
    assert (own.masks, own.run_lengths) == (kind in WITH_MASKS, False)
    assert own.train.num_images == 8 and own.val.num_images == 2
    assert set(found) == {scene["name"] for scene in scenes}
    for scene in scenes:
        assert len(found[scene["name"]]) == len(scene["objects"])
        for (name, box, polygon), thing in zip(found[scene["name"]], scene["objects"], strict=True):
            assert name == NAMES[thing["category"]]
            # YOLO's nine digits, of 96 pixels at most.
            assert box == pytest.approx(thing["box"], abs=1e-6)
            if kind in WITH_MASKS:
                assert polygon == pytest.approx(thing["polygon"], abs=1e-6)


@pytest.mark.parametrize("kind", WRITERS)
def test_detectron2_loads_it_and_the_check_finds_nothing(kind, tmp_path):
    write(kind, tmp_path / "mine")
    cfg = load_config(resolve_config_file(RECIPE), dataset=str(tmp_path / "mine"))
    masks = kind in WITH_MASKS
    assert cfg.model.roi_heads.num_classes == 2
    assert ("mask_head" in cfg.model.roi_heads) is masks
    assert cfg.dataloader.train.mapper.use_instance_mask is masks
    for split, count in (("train", 8), ("test", 2)):
        (name,) = read_config(cfg).dataset_names(split)
        report = check_dataset(name, Needs(split == "train", 2, masks=masks))
        assert not report.findings, str(report)
        metadata = MetadataCatalog.get(name)
        records = load_coco_json(metadata.json_file, metadata.image_root, name)
        assert len(records) == count and all(Path(r["file_name"]).is_file() for r in records)
        assert metadata.thing_classes == NAMES
    assert ("mask head is left off" in metadata.description) is not masks


def test_a_yaml_config_takes_it_too(tmp_path):
    write("voc", tmp_path / "mine")
    path = resolve_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg = load_config(path, ["DATA.TRAIN", str(tmp_path / "mine"), "SOLVER.MAX_ITER", "7"])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2 and not cfg.MODEL.MASK_ON
    assert cfg.DATASETS.TRAIN == ("own_mine_train",) and cfg.SOLVER.MAX_ITER == 7


def test_a_saved_config_registers_the_same_data_again(tmp_path, monkeypatch):
    from detectron2.config import LazyConfig

    write("csv", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    cfg = load_config(resolve_config_file(RECIPE), ["data.train=mine", "data.seed=3"])
    LazyConfig.save(cfg, "config.yaml")
    monkeypatch.chdir("/")
    again = load_config(str(tmp_path / "config.yaml"))
    assert again == LazyConfig.load(str(tmp_path / "config.yaml")) and again.data.seed == 3
    overridden = load_config(str(tmp_path / "config.yaml"), ["model.roi_heads.num_classes=9"])
    assert overridden.model.roi_heads.num_classes == 9  # the user's word is the last


def test_held_out_images_follow_from_seed_and_names(tmp_path):
    write("csv", tmp_path / "mine", count=20)

    def held(**arguments):
        content = json.loads(
            Path(read_own_data(str(tmp_path / "mine"), **arguments).val.json_file).read_text()
        )
        return {Path(image["file_name"]).name for image in content["images"]}

    assert held() == held(seed=0) != held(seed=1)
    assert len(held(val_share=0.5)) == 10 and held() < held(val_share=0.5)
    lines = (tmp_path / "mine" / "boxes.csv").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("007.jpg")]
    (tmp_path / "mine" / "boxes.csv").write_text("\n".join(lines))
    assert len(held() ^ held(val_share=0.2)) == 0
    assert len(read_back(read_own_data(str(tmp_path / "mine")))) == 19


def test_splits_of_their_own_are_kept(tmp_path):
    scenes = make_objects(count=6)
    for split, part in (("train", scenes[:4]), ("valid", scenes[4:])):
        (tmp_path / "mine" / split).mkdir(parents=True)
        WRITERS["labelme"](tmp_path / "mine" / split, part)
    own = read_own_data(str(tmp_path / "mine"))
    assert (own.train.num_images, own.val.num_images) == (4, 2)
    again = read_own_data(str(tmp_path / "mine" / "train"), str(tmp_path / "mine" / "valid"))
    assert (again.train.json_file, again.val.json_file) == (own.train.json_file, own.val.json_file)


def test_voc_that_counts_from_0_is_read_so(tmp_path):
    write("voc", tmp_path / "mine")
    file = tmp_path / "mine" / "Annotations" / "000.xml"
    text = file.read_text()
    start = text.index("<xmin>")
    file.write_text(text[:start] + "<xmin>0</xmin>" + text[text.index("</xmin>") + 7 :])
    own = read_own_data(str(tmp_path / "mine"))
    assert any("from 0" in note for note in own.notes)
    assert read_back(own)["000.jpg"][0][1][0] == 0


def replace(file: str, old: str, new: str):
    def apply(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return apply


def rewrite(file: str, change):
    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return apply


def first_line(file: str, text: str):
    def apply(folder: Path) -> None:
        lines = (folder / file).read_text().splitlines()
        (folder / file).write_text("\n".join([text, *lines[1:]]))

    return apply


_COCO = "annotations/instances_default.json"
_XML, _TXT = "Annotations/003.xml", "labels/train/003.txt"
FAULTS = {
    "coco: image twice": ("coco", rewrite(_COCO, lambda c: c["images"][1].update(id=0)), "id 0"),
    "coco: unknown class": (
        "coco",
        rewrite(_COCO, lambda c: c["annotations"][2].update(category_id=9)),
        "id 3",
    ),
    "coco: box": (
        "coco",
        rewrite(_COCO, lambda c: c["annotations"][4].update(bbox=[1, 2, 3])),
        "id 5",
    ),
    "coco: cut off": (
        "coco",
        lambda f: (f / _COCO).write_text((f / _COCO).read_text()[:999]),
        "instances_default.json:\n  error: is cut off",
    ),
    "coco: no categories": ("coco", rewrite(_COCO, lambda c: c.pop("categories")), "'categories'"),
    "voc: xml": ("voc", replace(_XML, "</size>", ""), "003.xml: is no valid XML: mismatched"),
    "voc: no number": ("voc", replace(_XML, "<ymin>", "<ymin>x"), "003.xml, object 1 ("),
    "voc: size": ("voc", replace(_XML, "<width>", "<width>1"), "003.xml: says that"),
    "voc: no name": (
        "voc",
        lambda f: (f / _XML).write_text(re.sub("<name>.*?</name>", "", (f / _XML).read_text())),
        "003.xml, object 1: the object has no class name",
    ),
    "voc: no image": ("voc", lambda f: (f / "JPEGImages/003.jpg").unlink(), "003.xml: its image"),
    "yolo: class": ("yolo", first_line(_TXT, "2 .5 .5 .1 .1"), "003.txt:1: class 2 is not"),
    "yolo: pixels": ("yolo", first_line(_TXT, "0 40 40 9 9"), "003.txt:1: 40 is not between"),
    "yolo: columns": ("yolo", first_line(_TXT, "0 .5 .5 .1 .1 .9"), "003.txt:1: 5 numbers follow"),
    "yolo: text": ("yolo", first_line(_TXT, "round .5 .5 .1 .1"), "003.txt:1: not numbers"),
    "yolo: nc": ("yolo", replace("data.yaml", "nc: 2", "nc: 3"), "data.yaml: 'nc' is 3"),
    "yolo: no folder": (
        "yolo",
        replace("data.yaml", "images/train", "pictures"),
        "data.yaml: 'train' is 'pictures', which is not there",
    ),
    "labelme: line": (
        "labelme",
        rewrite("003.json", lambda c: c["shapes"][0].update(shape_type="line")),
        "003.json, shape 1 (",
    ),
    "labelme: points": (
        "labelme",
        rewrite("003.json", lambda c: c["shapes"][0].update(points=[[1, 2], [3, 4]])),
        "003.json, shape 1 (",
    ),
    "labelme: size": (
        "labelme",
        rewrite("003.json", lambda c: c.update(imageWidth=1)),
        "003.json: says that",
    ),
    "labelme: json": ("labelme", replace("003.json", "]", ""), "003.json: is no valid JSON"),
    "csv: columns": (
        "csv",
        replace("boxes.csv", "xmin", "minimum"),
        "boxes.csv:1: the first line must name the columns",
    ),
    "csv: number": ("csv", replace("boxes.csv", "003.jpg,", "003.jpg,9,"), "boxes.csv:"),
    "csv: image": ("csv", replace("boxes.csv", "003.jpg", "300.jpg"), "its image is not there"),
    "csv: corners": (
        "csv",
        lambda f: (f / "boxes.csv").write_text(
            "image,x1,y1,x2,y2,class\n000.jpg,9,9,20,20,a\n000.jpg,9,9,4,20,a\n"
        ),
        "boxes.csv:3: the box is empty: x 9 to 4",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_one_message_with_file_and_line_or_id(case, tmp_path):
    kind, break_it, expected = FAULTS[case]
    write(kind, tmp_path / "mine")
    break_it(tmp_path / "mine")
    with pytest.raises(UserError) as caught:
        cfg = load_config(resolve_config_file(RECIPE), dataset=str(tmp_path / "mine"))
        reports = [
            check_dataset(name, Needs(split == "train", 2))
            for split in ("train", "test")
            for name in read_config(cfg).dataset_names(split)
        ]
        if any(report.has_errors() for report in reports):
            raise UserError("\n".join(map(str, reports)))
    message = str(caught.value)
    assert expected in message and str(tmp_path / "mine") in message
    assert not list((tmp_path / "cache").rglob("*.json.*"))  # nothing half-written


def test_other_mistakes_are_told(tmp_path):
    path = resolve_config_file(RECIPE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no labels in a format"):
        load_config(path, dataset=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="is not there"):
        load_config(path, dataset=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"data\.vall: no such key; did you mean val"):
        load_config(path, ["data.vall=x"])
    with pytest.raises(ConfigError, match=r"data\.val_share \(1\.5\) must be between"):
        load_config(path, ["data.train=x", "data.val_share=1.5"])
    with pytest.raises(ConfigError, match=r"data\.seed \('a'\) must be a whole number"):
        load_config(path, ["data.train=x", "data.seed=a"])
    write("coco", tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"has a model\.roi_heads\.keypoint_head"):
        load_config(
            resolve_config_file("finetune/keypoint_rcnn_r50_fpn_ws_gn_1x"),
            dataset=str(tmp_path / "mine"),
        )


def test_epochs_are_counted_in_images_that_are_trained_on(tmp_path):
    """Eight of ten images, one of them without an object: 7 × 5 / 2 iterations, rounded up."""
    write("csv", tmp_path / "mine")
    own = read_own_data(str(tmp_path / "mine"))
    images = json.loads(Path(own.train.json_file).read_text())["images"]
    first = Path(images[0]["file_name"]).name
    file = tmp_path / "mine" / "boxes.csv"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(first)]
    file.write_text("\n".join([*lines, f"{first},,,,,,,"]))
    cfg = load_config(
        resolve_config_file(RECIPE), ["train.epochs=5"], dataset=str(tmp_path / "mine")
    )
    config = read_config(cfg, world_size=1)
    config.count_epochs()
    assert config.options.max_iter == cfg.train.max_iter == 18
    multiplier = config.build_scheduler(None)
    assert multiplier(1.0) < 1e-3 < multiplier(0.5)
    cfg.dataloader.train.dataset.names = "nowhere"
    config.count_epochs()  # the checks say what is wrong
    assert config.options.max_iter == 18
