"""The formulas that published detectors are tested against, against mmdetection itself.

It is no requirement, and these tests are skipped without it:

    $ pip install mmdet==3.3.0 mmcv-lite==2.1.0 mmengine==0.10.7

Its compiled operators, which mmcv-lite lacks, are torchvision's here.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from tests.checkpoint.published import WSConv
from tests.checkpoint.published_detectors import CLASSES, FC, LAYERS, WIDTH, Detector, mmdetection
from wsbcn_d2.data import digits

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mmdet", "mmcv", "mmengine")),
    reason="mmdet, mmcv-lite and mmengine are not installed",
)

CONFIGS = {
    "gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py": WSConv,
    "gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py": nn.Conv2d,
    "scratch/mask-rcnn_r50-scratch_fpn_gn-all_6x_coco.py": nn.Conv2d,
}


# The modules of mmcv.ops that mmdetection imports from.
OPERATORS = (
    "carafe",
    "merge_cells",
    "modulated_deform_conv",
    "multi_scale_deform_attn",
    "nms",
    "roi_align",
)


class RoIAlign(nn.Module):
    """mmcv's arguments for torchvision's operator."""

    def __init__(
        self,
        output_size: int,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = (output_size, output_size)
        self.options = (spatial_scale, sampling_ratio, aligned)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return torchvision.ops.roi_align(features, rois, self.output_size, *self.options)


def batched_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, nms_cfg: dict, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """mmcv's arguments and results for torchvision's operator."""
    assert not class_agnostic
    keep = torchvision.ops.batched_nms(boxes, scores, labels, nms_cfg["iou_threshold"])
    return torch.cat([boxes[keep], scores[keep, None]], 1), keep


class Operators(ModuleType):
    """``mmcv.ops``: the two above; all others can be imported only."""

    RoIAlign, batched_nms = RoIAlign, staticmethod(batched_nms)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


@pytest.fixture(scope="module")
def mmdet():
    sys.modules["mmcv.ops"] = Operators("mmcv.ops")
    for name in OPERATORS:
        sys.modules[f"mmcv.ops.{name}"] = Operators(f"mmcv.ops.{name}")
    import mmdet.models
    from mmdet.models.backbones.resnet import Bottleneck, ResNet
    from mmdet.utils import register_all_modules

    class Narrow(Bottleneck):
        """The bottlenecks of `Detector`: an eighth of the block's channels."""

        expansion = 8

    register_all_modules(init_default_scope=True)
    ResNet.arch_settings = {50: (Narrow, LAYERS)}
    return mmdet


def build(mmdet: ModuleType, config: str) -> nn.Module:
    """mmdetection's own model of its config, as narrow as `Detector`."""
    from mmdet.registry import MODELS
    from mmengine.config import Config

    cfg = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / config).model
    cfg.backbone.update(base_channels=32, stem_channels=64, init_cfg=None)
    cfg.neck.out_channels = cfg.rpn_head.in_channels = cfg.rpn_head.feat_channels = WIDTH
    heads = cfg.roi_head
    for part in (heads.bbox_head, heads.mask_head):
        part.update(in_channels=WIDTH, conv_out_channels=WIDTH, num_classes=CLASSES)
    heads.bbox_head.fc_out_channels = FC
    heads.bbox_roi_extractor.out_channels = heads.mask_roi_extractor.out_channels = WIDTH
    return MODELS.build(cfg).eval()


def close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < bound * max(expected.abs().max().item(), 1)


def both(mmdet: ModuleType, config: str) -> tuple[Detector, Any, Tensor]:
    """The formulas, mmdetection's model with the same weights, and a photograph as it takes it."""
    ours = Detector(partial(nn.GroupNorm, 32), CONFIGS[config])
    theirs = build(mmdet, config)
    theirs.load_state_dict(mmdetection(ours))  # every name and shape
    path = Path(digits.__file__).parent / "digit_sources" / "china.jpg"
    photograph = pil_to_tensor(Image.open(path).convert("RGB").resize((224, 160)))
    mean, std = theirs.data_preprocessor.mean, theirs.data_preprocessor.std
    return ours, theirs, ((photograph - mean.view(3, 1, 1)) / std.view(3, 1, 1))[None]


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_features_and_heads_are_mmdetections(mmdet, config):
    ours, theirs, batch = both(mmdet, config)
    theirs.double()
    levels = ours.features(batch.double())
    for level, found in zip(levels, theirs.extract_feat(batch.double()), strict=True):
        close(found, level)
    for expected, scores, deltas in zip(ours.rpn(levels), *theirs.rpn_head(levels), strict=True):
        close(scores[0].permute(1, 2, 0).reshape(-1), expected[0])
        close(deltas[0].permute(1, 2, 0).reshape(-1, 4), expected[1])
    boxes = [[3, 5, 60, 50], [0, 0, 220, 158], [90, 20, 130, 140]]
    rois = torch.tensor([[0.0, *box] for box in boxes]).double()
    found = theirs.roi_head._bbox_forward(levels, rois)
    close(found["cls_score"], ours.boxes(levels, rois)[0])
    close(found["bbox_pred"], ours.boxes(levels, rois)[1])
    masks = theirs.roi_head._mask_forward(levels, rois)["mask_preds"]
    close(masks, ours.masks(levels, rois))


@torch.no_grad()
def test_final_boxes_are_mmdetections(mmdet):
    """Of standardized convolutions: random plain ones give equal scores, and NMS takes either."""
    from mmdet.structures import DetDataSample

    ours, theirs, batch = both(mmdet, next(iter(CONFIGS)))
    size = {"img_shape": (160, 224), "ori_shape": (160, 224), "scale_factor": (1.0, 1.0)}
    sample = DetDataSample(metainfo={**size, "batch_input_shape": (160, 224)})
    found = theirs.predict(batch, [sample])[0].pred_instances
    boxes, scores, labels = ours.float().detect(batch)
    assert len(boxes) > 10 and len(set(labels.tolist())) > 1
    assert found.labels.tolist() == labels.tolist()
    close(found.scores, scores, 1e-4)
    close(found.bboxes, boxes, 1e-4)
