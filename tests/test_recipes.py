"""Recipes by name."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wsbcn_d2
from wsbcn_d2 import recipes


def test_get_config_takes_a_name_with_and_without_its_ending():
    for name in ("common/train", "common/train.py", "configs/common/train.py"):
        assert recipes.get_config(name).train.amp.enabled is False
    assert wsbcn_d2.get_config("common/train").train.max_iter == 90000


def test_an_unknown_name_lists_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "configs" / "finetune").mkdir(parents=True)
    (tmp_path / "configs" / "finetune" / "mask_rcnn_ws.py").write_text("train = dict(max_iter=1)\n")
    # A wheel has its recipes inside the package.
    monkeypatch.setattr(recipes, "_PACKAGE", tmp_path)
    assert recipes.list_configs() == ["finetune/mask_rcnn_ws"]
    assert recipes.get_config("finetune/mask_rcnn_ws").train.max_iter == 1
    with pytest.raises(ValueError, match="did you mean finetune/mask_rcnn_ws"):
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


def test_an_installed_package_has_every_recipe(tmp_path):
    # A copy of the checkout: the build leaves files beside setup.py.
    root = Path(wsbcn_d2.__file__).parents[1]
    for name in ("setup.py", "train_net.py"):
        shutil.copy(root / name, tmp_path)
    for name in ("wsbcn_d2", "configs", "tools"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / name, tmp_path / name, ignore=ignored)
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "installed"]
    subprocess.run(build, cwd=tmp_path, capture_output=True, check=True)
    code = (
        "import wsbcn_d2; from wsbcn_d2 import recipes\n"
        "cfg = wsbcn_d2.get_config('finetune/mask_rcnn_x101_32x4d_fpn_ws_gn_20_23_24e')\n"
        "print(wsbcn_d2.__file__, cfg.train.max_iter, *recipes.list_configs(), sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "installed", capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    file, max_iter, *names = run.stdout.splitlines()
    assert Path(file).is_relative_to(tmp_path / "installed")
    assert max_iter == "175920"
    assert names == recipes.list_configs()


def test_train_net_suggests_the_nearest_recipes():
    root = recipes.config_root().parent
    command = [sys.executable, "train_net.py", "--config-file"]
    wrong = "configs/finetune/mask_rcnn_r50_fpn_wsgn_2x.py"
    run = subprocess.run([*command, wrong], cwd=root, capture_output=True, text=True)
    assert run.returncode != 0
    (line,) = (line for line in run.stderr.splitlines() if "did you mean" in line)
    assert "configs/finetune/mask_rcnn_r50_fpn_ws_gn_2x.py" in line
