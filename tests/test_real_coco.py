"""Real recipes on real COCO images: train, evaluate, write everything.

Needs images of COCO train2017 and val2017 in detectron2's layout: in ``$DETECTRON2_DATASETS``, or
in ``../shared/data`` beside the checkout. By default a few of them; all of them in the slow tests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATASETS = Path(os.environ.get("DETECTRON2_DATASETS", ROOT.parent / "shared" / "data")).resolve()
ANNOTATIONS = Path("coco", "annotations")
FEW = 6

pytestmark = [
    pytest.mark.skipif(
        not (DATASETS / ANNOTATIONS / "instances_val2017.json").is_file(),
        reason=f"no COCO images: {DATASETS / ANNOTATIONS / 'instances_val2017.json'} is not there",
    ),
    pytest.mark.timeout(1200),
]


@pytest.fixture(params=["few", pytest.param("all", marks=pytest.mark.slow)])
def datasets(request, tmp_path):
    if request.param == "all":
        return DATASETS
    (tmp_path / ANNOTATIONS).mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (tmp_path / "coco" / split).symlink_to(DATASETS / "coco" / split)
        file = ANNOTATIONS / f"instances_{split}.json"
        data = json.loads((DATASETS / file).read_text(encoding="utf-8"))
        data["images"] = data["images"][:FEW]
        kept = {image["id"] for image in data["images"]}
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
        (tmp_path / file).write_text(json.dumps(data), encoding="utf-8")
    return tmp_path


def train(datasets, config, output, *overrides):
    command = [sys.executable, "train_net.py", "--config-file", config, "--num-gpus", "2"]
    run = subprocess.run(
        [*command, *overrides],
        cwd=ROOT,
        env={**os.environ, "DETECTRON2_DATASETS": str(datasets)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    # Without a single detection, detectron2's evaluator does not know that there would be masks.
    assert "bbox/AP" in set().union(*lines)
    assert all(line["total_loss"] < 1e4 for line in lines if "total_loss" in line)
    for name in ("model_final.pth", "config.yaml", "curves.png", "predictions.png", "log.txt"):
        assert (output / name).stat().st_size > 0
    return (output / "log.txt").read_text()


def test_finetune_recipe_trains_and_evaluates_from_random_weights(datasets, tmp_path):
    output = tmp_path / "output"
    log = train(
        datasets,
        "configs/finetune/mask_rcnn_r50_fpn_ws_gn_2x.py",
        output,
        "train.device=cpu",
        "train.max_iter=20",
        "train.log_period=5",
        f"train.output_dir={output}",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentations.0.short_edge_length=[32]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=32",
    )
    # 53 of ResNet-50, 8 of FPN, 4 of the box head, 4 of the mask head.
    assert "Standardizing the weights of 69 of" in log
    assert "add train.init_checkpoint=wsbcn://resnet50_gn_ws" in log


def test_sn_in_detectron2s_stock_yaml_trains_and_evaluates(datasets, tmp_path):
    output = tmp_path / "output"
    log = train(
        datasets,
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
        output,
        *("MODEL.RESNETS.NORM", "SN", "MODEL.FPN.NORM", "SN", "MODEL.WEIGHTS", ""),
        *("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "20"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001", "DATALOADER.NUM_WORKERS", "0"),
        *("INPUT.MIN_SIZE_TRAIN", "(32,)", "INPUT.MIN_SIZE_TEST", "32"),
    )
    assert "SwitchNorm2d(64, eps=1e-05" in log
