"""Recipes by name."""

import subprocess
import sys

import pytest

import wsbcn_d2
from wsbcn_d2 import recipes


def test_get_config_takes_a_name_with_and_without_its_ending():
    for name in ("common/train", "common/train.py", "configs/common/train.py"):
        assert recipes.get_config(name).train.amp.enabled is False
    assert wsbcn_d2.get_config("common/train").train.max_iter == 90000


def test_every_listed_recipe_has_a_file_and_shared_parts_are_not_listed():
    names = recipes.list_configs()
    assert names and not any(name.startswith("common/") for name in names)
    assert all(recipes.config_file(name).is_file() for name in names)


def test_an_unknown_name_lists_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "configs" / "finetune").mkdir(parents=True)
    (tmp_path / "configs" / "finetune" / "mask_rcnn_ws.py").write_text("train = dict(max_iter=1)\n")
    # A wheel has its recipes inside the package.
    monkeypatch.setattr(recipes, "_PACKAGE", tmp_path)
    assert recipes.list_configs() == ["finetune/mask_rcnn_ws"]
    assert recipes.get_config("finetune/mask_rcnn_ws").train.max_iter == 1
    with pytest.raises(ValueError, match="nearest: finetune/mask_rcnn_ws"):
        recipes.get_config("finetune/mask_rcn_ws")
    with pytest.raises(ValueError, match="known: finetune/mask_rcnn_ws"):
        recipes.get_config("xyz")


def test_a_name_does_not_lead_out_of_the_folder():
    with pytest.raises(ValueError, match="unknown recipe"):
        recipes.config_file("../setup")


def test_listing_needs_no_detectron2():
    code = (
        "import sys; sys.modules['detectron2'] = None; from wsbcn_d2.recipes import list_configs;"
        "assert list_configs()"
    )
    root = recipes.config_root().parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
