"""A COCO-format dataset of a few small images, and detectors that train on it in seconds.

The dataset lies in detectron2's layout as the builtin coco_2017_train and coco_2017_val.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

LAZY_CONFIG = """
from detectron2 import model_zoo
from detectron2.config import LazyCall as L, LazyConfig
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

def zoo(name, key):
    return LazyConfig.load(model_zoo.get_config_file(f"common/{name}.py"), key)

model = zoo("models/mask_rcnn_fpn", "model")
dataloader = zoo("data/coco", "dataloader")
optimizer = zoo("optim", "SGD")
lr_multiplier = zoo("coco_schedule", "lr_multiplier_1x")

backbone = model.backbone
backbone.out_channels = 16
backbone.bottom_up.freeze_at = 0
backbone.bottom_up.stem.update(out_channels=8, norm="BN")
backbone.bottom_up.stages = [
    L(ResNet.make_stage)(
        block_class=BasicBlock, num_blocks=1, stride_per_block=[s], in_channels=i,
        out_channels=o, norm="BN",
    )
    for s, i, o in ((1, 8, 8), (2, 8, 16), (2, 16, 24), (2, 24, 32))
]
model.proposal_generator.head.in_channels = 16
model.proposal_generator.pre_nms_topk = (50, 50)
model.proposal_generator.post_nms_topk = (30, 30)
heads = model.roi_heads
heads.batch_size_per_image = 16
heads.box_head.input_shape = ShapeSpec(channels=16, height=7, width=7)
heads.box_head.fc_dims = [32]
heads.box_predictor.input_shape = ShapeSpec(channels=32)
heads.box_predictor.test_score_thresh = 0.0
heads.mask_head.input_shape = ShapeSpec(channels=16, height=14, width=14)
heads.mask_head.conv_dims = [16, 16]

dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 0
dataloader.train.mapper.augmentations[0].update(short_edge_length=[64], max_size=96)
dataloader.test.num_workers = 0
dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=96)

train = dict(
    output_dir="output", max_iter=6, eval_period=3, log_period=2, seed=3, device="cpu",
    checkpointer=dict(period=3, max_to_keep=2), vis=dict(num_images=2, score_threshold=0.0),
)
"""

# Overrides that shrink detectron2's stock Mask R-CNN; its widths follow from these.
YAML_OVERRIDES = """
MODEL.WEIGHTS "" MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.STEM_OUT_CHANNELS 8
MODEL.RESNETS.RES2_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.BACKBONE.FREEZE_AT 0
MODEL.RESNETS.NORM BN MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32
MODEL.ROI_MASK_HEAD.CONV_DIM 16 MODEL.ROI_MASK_HEAD.NUM_CONV 1
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
MODEL.RPN.PRE_NMS_TOPK_TRAIN 50 MODEL.RPN.PRE_NMS_TOPK_TEST 50
MODEL.RPN.POST_NMS_TOPK_TRAIN 30 MODEL.RPN.POST_NMS_TOPK_TEST 30
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MAX_SIZE_TRAIN 96 INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 96
DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 3 SOLVER.STEPS ()
SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 0 SEED 3
"""


def yaml_overrides() -> list[str]:
    return [word if word != '""' else "" for word in YAML_OVERRIDES.split()]


def make_dataset(root: Path, num_train: int = 8, num_val: int = 4) -> None:
    """Bright rectangles on noise, 64 to 96 pixels, in two of COCO's 80 categories."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    random = np.random.default_rng(0)
    annotation_folder = root / "coco" / "annotations"
    annotation_folder.mkdir(parents=True)
    for split, count in (("train2017", num_train), ("val2017", num_val)):
        folder = root / "coco" / split
        folder.mkdir()
        images, annotations = [], []
        for i in range(1, count + 1):
            height, width = (int(n) for n in random.integers(64, 97, 2))
            pixels = random.integers(0, 80, (height, width, 3), dtype=np.uint8)
            for category in (1, 3):
                w, h = (int(n) for n in random.integers(20, 33, 2))
                x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
                pixels[y : y + h, x : x + w, category % 3] = 255
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            name = f"{i:012d}.png"
            Image.fromarray(pixels).save(folder / name)
            images.append({"id": i, "file_name": name, "height": height, "width": width})
        content = {
            "info": {}, "images": images, "annotations": annotations, "categories": categories
        }  # fmt: skip
        (annotation_folder / f"instances_{split}.json").write_text(json.dumps(content))


def environment(**more: str) -> dict[str, str]:
    """The environment of a command of a user, with ``more``."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        # No GPU, wherever the tests run: these are the CPU's.
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


def train_net(
    *args: str, datasets: Path, cwd: Path, runner: tuple[str, ...] = (), timeout: int = 200
) -> subprocess.CompletedProcess[str]:
    """Run train_net.py as a user does; stdout and stderr together in ``stdout``."""
    process = start_train_net(*args, datasets=datasets, cwd=cwd, runner=runner)
    try:
        log, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(args, process.returncode, log)


def start_train_net(
    *args: str, datasets: Path, cwd: Path, runner: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Start train_net.py as a user does."""
    return subprocess.Popen(
        [sys.executable, *runner, str(ROOT / "train_net.py"), *args],
        cwd=cwd,
        env=environment(DETECTRON2_DATASETS=str(datasets)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
