"""Real recipes on real COCO images: train, evaluate, write everything.

Needs the first images of COCO train2017 and val2017 in detectron2's layout: in
``$DETECTRON2_DATASETS``, or in ``../shared/data`` beside the checkout.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATASETS = Path(os.environ.get("DETECTRON2_DATASETS", ROOT.parent / "shared" / "data")).resolve()
ANNOTATIONS = DATASETS / "coco" / "annotations" / "instances_val2017.json"

pytestmark = pytest.mark.skipif(
    not ANNOTATIONS.is_file(), reason=f"no COCO images: {ANNOTATIONS} does not exist"
)


def train(config, output, *overrides):
    command = [sys.executable, "train_net.py", "--config-file", config, *overrides]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(DATASETS)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert {"bbox/AP", "segm/AP"} <= set().union(*lines)
    assert all(line["total_loss"] < 1e4 for line in lines if "total_loss" in line)
    for name in ("model_final.pth", "config.yaml", "curves.png", "predictions.png", "log.txt"):
        assert (output / name).stat().st_size > 0
    return (output / "log.txt").read_text()


@pytest.mark.timeout(600)
def test_finetune_recipe_trains_and_evaluates_from_random_weights(tmp_path):
    log = train(
        "configs/finetune/mask_rcnn_r50_fpn_ws_gn_2x.py",
        tmp_path,
        "train.device=cpu",
        "train.init_checkpoint=",
        "train.max_iter=20",
        "train.log_period=5",
        f"train.output_dir={tmp_path}",
        "dataloader.train.total_batch_size=1",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentations.0.short_edge_length=[96]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=96",
    )
    # 53 of ResNet-50, 8 of FPN, 4 of the box head, 4 of the mask head.
    assert "Standardizing the weights of 69 of" in log


@pytest.mark.timeout(600)
def test_sn_in_detectron2s_stock_yaml_trains_and_evaluates(tmp_path):
    log = train(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
        tmp_path,
        *("MODEL.RESNETS.NORM", "SN", "MODEL.FPN.NORM", "SN", "MODEL.WEIGHTS", ""),
        *("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "20"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001", "DATALOADER.NUM_WORKERS", "0"),
        *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"),
    )
    assert "SwitchNorm2d(64, eps=1e-05" in log
