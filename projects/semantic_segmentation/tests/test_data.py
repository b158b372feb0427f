"""Label maps that are made here or listed here, against what they are made from."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from projects.semantic_segmentation.semantic_segmentation import data
from tests.annotated_images import ANNOTATIONS
from wsbcn_d2.data.label_maps import read_label_map


@pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="no COCO in $DETECTRON2_DATASETS")
def test_coco_maps_have_the_areas_of_the_panoptic_segments(tmp_path, monkeypatch):
    monkeypatch.setenv("WSBCN_D2_CACHE", str(tmp_path))
    panoptic = ANNOTATIONS / "panoptic_val2017.json"
    content = json.loads(panoptic.read_text())
    content["annotations"] = content["annotations"][:4]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(content))
    load = partial(
        data._coco, str(ANNOTATIONS.parent / "val2017"), str(ANNOTATIONS / "panoptic_val2017")
    )
    records = load(str(few))
    assert len(records) == 4
    for record, annotation in zip(records, content["annotations"], strict=True):
        labels = read_label_map(record["sem_seg_file_name"])
        with Image.open(record["file_name"]) as image:
            assert labels.shape == image.size[::-1] == (record["height"], record["width"])
        areas: Counter[int] = Counter()
        for segment in annotation["segments_info"]:
            areas[segment["category_id"]] += segment["area"]
        found = {
            COCO_CATEGORIES[k]["id"]: int((labels == k).sum())
            for k in np.unique(labels)
            if k != data.IGNORE
        }
        assert found == dict(areas)


def test_voc_is_found_in_its_own_layout(tmp_path):
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainaug.txt").write_text("2007_000032\n2011_003276\n")
    records = data._voc(tmp_path, "SegmentationClassAug", "trainaug")
    assert [record["image_id"] for record in records] == ["2007_000032", "2011_003276"]
    assert records[1]["file_name"] == str(tmp_path / "JPEGImages/2011_003276.jpg")
    assert records[1]["sem_seg_file_name"] == str(tmp_path / "SegmentationClassAug/2011_003276.png")
    assert len(data.VOC_CLASSES) == 21
