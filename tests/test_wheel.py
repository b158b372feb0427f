"""The wheel, for a user who never saw the checkout: recipes by name, and the commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.own_data import make_objects, write_coco

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    *("train.max_iter=3", "train.eval_period=0", "train.checkpointer.period=0", "train.device=cpu"),
    *("model.roi_heads.box_predictor.test_score_thresh=0.0", "dataloader.train.num_workers=0"),
    *("model.roi_heads.box_predictor.test_topk_per_image=10", "dataloader.test.num_workers=0"),
    *("train.vis.num_images=0", "train.output_dir=output"),
]
MODEL = ["--config-file", "output/config.yaml", "--weights", "output/model_final.pth"]


@pytest.mark.slow
def test_train_predict_fold_and_export_from_the_wheel(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    source, site = tmp_path / "source", tmp_path / "site"
    # A copy: building leaves folders behind.
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    quiet = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *quiet, "--no-build-isolation", "-w", "wheels", str(source)]
    subprocess.run(build, cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "wheels").glob("wsbcn_d2-*.whl")
    subprocess.run([*pip, "install", *quiet, "--target", str(site), str(wheel)], check=True)
    shutil.rmtree(source)

    work = tmp_path / "work"
    (work / "mine").mkdir(parents=True)
    write_coco(work / "mine", make_objects(count=10))
    environment = {**os.environ, "PYTHONPATH": str(site), "WSBCN_D2_CACHE": str(tmp_path / "cache")}

    def run(command: str, *words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", f"wsbcn_d2.tools.{command}", *words],
            cwd=work, env=environment, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    recipe = ["--config-file", "quick/mask_rcnn_r18_fpn_ws_gn", "--dataset", "mine"]
    assert "nothing found" in run("check_dataset", "mine", "--masks")
    run("train_net", *recipe, *SMALL)
    images = [str(path) for path in sorted((work / "mine" / "images").glob("*.jpg"))[:2]]
    run("predict", *MODEL, "--threshold", "0", "--output", "predictions", *images)
    with Image.open(work / "predictions" / "000.jpg") as picture:
        assert picture.size == Image.open(images[0]).size
    assert "detectron2 alone" in run("fold_model", *MODEL, "--output", "folded", *images)
    assert "written: mine.onnx" in run("export_model", *MODEL, "--output", "mine.onnx", *images)
    assert (work / "mine.onnx").stat().st_size > 1_000_000
