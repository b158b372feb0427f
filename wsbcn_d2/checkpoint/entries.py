"""The table of published weights: address, hash, and what the files do not say of themselves.

The addresses are those of the projects' public pages; docs/weights.md lists them with the pages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CATALOG", "Entry"]


@dataclass(frozen=True)
class Entry:
    """One file of published weights.

    Attributes:
        url: where it is.
        options: of `convert_weights`: the source, and what the file does not say of itself.
        file: name to keep it under, where the address does not end in it. Such files are on Google
            Drive, which hands them to a browser only: the user puts them in place.
        sha256: start of the file's hash; by default the eight digits with which torchvision's,
            openmmlab's and timm's file names end.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        match = re.search(r"-([0-9a-f]{8})\.pth$", self.url)
        if match is not None and not self.sha256:
            object.__setattr__(self, "sha256", match[1])


_MMLAB = "https://download.openmmlab.com/pretrain/third_party"
_MMDET = "https://download.openmmlab.com/mmdetection/v2.0"
_TORCHVISION = "https://download.pytorch.org/models"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-rsb-weights"
_TIMM_HUB = "https://huggingface.co/timm"
_WS = "http://cs.jhu.edu/~syqiao/WeightStandardization"
_BCN = "https://cs.jhu.edu/~syqiao/BatchChannelNormalization"
_DETECTRON = "https://dl.fbaipublicfiles.com/detectron/GN"
_DRIVE = "https://drive.google.com/open?id="

_GN_WS = {"source": "mmdet", "ws": True}
_GN = {"source": "mmdet", "ws": False}
# Detectron's, which mmdetection's configs feed with BGR of unit deviation; ours is RGB.
_GN_DETECTRON = {
    **_GN,
    "input_format": "BGR",
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (1.0, 1.0, 1.0),
    "fold_input": True,
}


def _bn(file: str) -> Entry:
    # torchvision's reference script: 32 images a GPU.
    return Entry(f"{_TORCHVISION}/{file}.pth", {"source": "torchvision", "minibatch": 32})


def _bit(name: str) -> Entry:
    return Entry(f"{_TIMM_HUB}/resnetv2_{name}/resolve/main/model.safetensors", {"source": "bit"})


def _mmdet(folder: str, config: str, file: str, options: Mapping[str, Any]) -> Entry:
    return Entry(f"{_MMDET}/{folder}/{config}/{file}.pth", options)


def _gn_ws(config: str, suffix: str) -> Entry:
    config = f"{config}_coco"
    return _mmdet("gn%2Bws", config, f"{config}_{suffix}", _GN_WS)


def _gn(config: str, suffix: str, options: Mapping[str, Any]) -> Entry:
    config = f"mask_rcnn_{config}_coco"
    return _mmdet("gn", config, f"{config}_{suffix}", options)


def _drive(source: str, identifier: str, file: str, minibatch: int) -> Entry:
    return Entry(_DRIVE + identifier, {"source": source, "minibatch": minibatch}, file)


def _detectron(model_id: str, run: str) -> Entry:
    train = "output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn"
    options = {
        "source": "sn_detection",
        "input_format": "BGR",
        "pixel_mean": (102.9801, 115.9465, 122.7717),
        "pixel_std": (1.0, 1.0, 1.0),
        "fold_input": True,
    }
    url = f"{_DETECTRON}/{model_id}/04_2018_gn_baselines/e2e_mask_rcnn_{run}/{train}"
    return Entry(f"{url}/model_final.pkl", options)


def _ssn(identifier: str, minibatch: int) -> Entry:
    return _drive("ssn", identifier, f"ssn_8x{minibatch}.pth", minibatch)


CATALOG = {
    # GN + WS, by the authors, as mmdetection serves and uses them
    "resnet50_gn_ws": Entry(f"{_MMLAB}/resnet50_gn_ws-15beedd8.pth", _GN_WS),
    "resnet101_gn_ws": Entry(f"{_MMLAB}/resnet101_gn_ws-3e3c308c.pth", _GN_WS),
    "resnext50_32x4d_gn_ws": Entry(f"{_MMLAB}/resnext50_32x4d_gn_ws-0d87ac85.pth", _GN_WS),
    "resnext101_32x4d_gn_ws": Entry(f"{_MMLAB}/resnext101_32x4d_gn_ws-34ac1a9e.pth", _GN_WS),
    # GN + WS, from the authors' own page
    "resnet50_gn_ws_jhu": Entry(f"{_WS}/R-50-GN-WS.pth.tar", {"source": "ws"}),
    "resnet101_gn_ws_jhu": Entry(f"{_WS}/R-101-GN-WS.pth.tar", {"source": "ws"}),
    "resnext50_32x4d_gn_ws_jhu": Entry(f"{_WS}/X-50-GN-WS.pth.tar", {"source": "ws"}),
    "resnext101_32x4d_gn_ws_jhu": Entry(f"{_WS}/X-101-GN-WS.pth.tar", {"source": "ws"}),
    # GN
    "resnet50_gn": Entry(f"{_MMLAB}/resnet50_gn-9186a21c.pth", _GN_DETECTRON),
    "resnet101_gn": Entry(f"{_MMLAB}/resnet101_gn-cac0ab98.pth", _GN_DETECTRON),
    "resnet50_gn_contrib": Entry(f"{_MMLAB}/resnet50_gn_thangvubk-ad1730dd.pth", _GN),
    "resnext50_32x4d_gn": Entry(f"{_MMLAB}/resnext50_32x4d_gn-c7e8b754.pth", _GN),
    "resnext101_32x4d_gn": Entry(f"{_MMLAB}/resnext101_32x4d_gn-ac3bb84e.pth", _GN),
    "resnet50_gn_timm": Entry(f"{_TIMM}/resnet50_gn_a1h2-8fe6c4d0.pth", {"source": "timm"}),
    # GN + WS, pre-activation: BiT, as timm serves it
    "resnetv2_50x1_bit_in21k": _bit("50x1_bit.goog_in21k"),
    "resnetv2_50x3_bit_in21k": _bit("50x3_bit.goog_in21k"),
    "resnetv2_101x1_bit_in21k": _bit("101x1_bit.goog_in21k"),
    "resnetv2_101x3_bit_in21k": _bit("101x3_bit.goog_in21k"),
    "resnetv2_152x2_bit_in21k": _bit("152x2_bit.goog_in21k"),
    "resnetv2_50x1_bit_distilled": _bit("50x1_bit.goog_distilled_in1k"),
    # BCN + WS; the scripts' batch over its 4 GPUs
    "resnet50_bcn_ws": Entry(f"{_BCN}/rn50_bcn_ws.pth", {"source": "bcn", "minibatch": 64}),
    "resnet101_bcn_ws": Entry(f"{_BCN}/rn101_bcn_ws.pth", {"source": "bcn", "minibatch": 32}),
    "resnext50_32x4d_bcn_ws": Entry(f"{_BCN}/rx50_bcn_ws.pth", {"source": "bcn"}),
    # BN
    "resnet18_bn": _bn("resnet18-f37072fd"),
    "resnet50_bn": _bn("resnet50-0676ba61"),
    "resnet101_bn": _bn("resnet101-63fe2227"),
    "resnext50_32x4d_bn": _bn("resnext50_32x4d-7cdf4587"),
    # SN, named by its setting: GPUs x images a GPU
    "resnet50_sn_8x32": _drive(
        "sn", "17mHmoVom2zM7nrbFeE4yzKa7KtqykTyD", "ResNet50v1+SN(8,32)-77.49.pth", 32
    ),
    "resnet50_sn_8x4": _drive(
        "sn", "1x_ZR0ZFtvRzZHkFZVXeVoLeXoJKX-LrZ", "ResNet50v1+SN(8,4)-75.85.pth", 4
    ),
    "resnet50_sn_in_ln_8x1": _drive(
        "sn", "1-y8dDn19Hx02efy4Z5ZRihggYHTYvqkc", "ResNet50v1+SN(8,1)-75.94.pth", 1
    ),
    "resnet101_sn_8x32": _drive(
        "sn", "1xza5ju6lRRelPym3Sj99VY_8c4jXhxkn", "ResNet101v1+SN(8,32)-78.54.pth", 32
    ),
    "resnet50_sn_8x2": _drive(
        "sn_detection", "1b0ia4AnSGL__8pAKG-n4w3CSeYCjlNwe", "resnet-sn-50-(8,2)-fpn.pth", 2
    ),
    # SSN
    "resnet50_ssn_8x32": _ssn("1b7tezVjfSl1MZNHRC8qkaw59lLW4EYEh", 32),
    "resnet50_ssn_8x16": _ssn("1wJx_6bNrv7N9zdy1m2vkABTwMuowluxV", 16),
    "resnet50_ssn_8x8": _ssn("18HXLmZVB5JF_TcneEMHXtCo1RQt17fYC", 8),
    "resnet50_ssn_8x4": _ssn("1Ry4kjLURixg2_pzj6J1lwGg1USnSC0oz", 4),
    "resnet50_ssn_8x2": _ssn("1r485fLeSAwS5zKrxcAtGxa_mPr1lWcoS", 2),
    # Detectors of mmdetection with GN + WS, by their recipes' names
    "faster_rcnn_r50_fpn_ws_gn_1x": _gn_ws("faster_rcnn_r50_fpn_gn_ws-all_1x", "20200130-613d9fe2"),
    "faster_rcnn_r101_fpn_ws_gn_1x": _gn_ws(
        "faster_rcnn_r101_fpn_gn_ws-all_1x", "20200205-a93b0d75"
    ),
    "faster_rcnn_x50_32x4d_fpn_ws_gn_1x": _gn_ws(
        "faster_rcnn_x50_32x4d_fpn_gn_ws-all_1x", "20200203-839c5d9d"
    ),
    "faster_rcnn_x101_32x4d_fpn_ws_gn_1x": _gn_ws(
        "faster_rcnn_x101_32x4d_fpn_gn_ws-all_1x", "20200212-27da1bc2"
    ),
    "mask_rcnn_r50_fpn_ws_gn_2x": _gn_ws("mask_rcnn_r50_fpn_gn_ws-all_2x", "20200226-16acb762"),
    "mask_rcnn_r101_fpn_ws_gn_2x": _gn_ws("mask_rcnn_r101_fpn_gn_ws-all_2x", "20200212-ea357cd9"),
    "mask_rcnn_x50_32x4d_fpn_ws_gn_2x": _gn_ws(
        "mask_rcnn_x50_32x4d_fpn_gn_ws-all_2x", "20200216-649fdb6f"
    ),
    "mask_rcnn_x101_32x4d_fpn_ws_gn_2x": _gn_ws(
        "mask_rcnn_x101_32x4d_fpn_gn_ws-all_2x", "20200319-33fb95b5"
    ),
    "mask_rcnn_r50_fpn_ws_gn_20_23_24e": _gn_ws(
        "mask_rcnn_r50_fpn_gn_ws-all_20_23_24e", "20200213-487d1283"
    ),
    "mask_rcnn_r101_fpn_ws_gn_20_23_24e": _gn_ws(
        "mask_rcnn_r101_fpn_gn_ws-all_20_23_24e", "20200213-57b5a50f"
    ),
    "mask_rcnn_x50_32x4d_fpn_ws_gn_20_23_24e": _gn_ws(
        "mask_rcnn_x50_32x4d_fpn_gn_ws-all_20_23_24e", "20200226-969bcb2c"
    ),
    "mask_rcnn_x101_32x4d_fpn_ws_gn_20_23_24e": _gn_ws(
        "mask_rcnn_x101_32x4d_fpn_gn_ws-all_20_23_24e", "20200316-e6cd35ef"
    ),
    # with GN: from Detectron's weights, from @thangvubk's ("contrib"), from random ones
    "mask_rcnn_r50_fpn_gn_2x": _gn("r50_fpn_gn-all_2x", "20200206-8eee02a6", _GN_DETECTRON),
    "mask_rcnn_r50_fpn_gn_28_34_36e": _gn("r50_fpn_gn-all_3x", "20200214-8b23b1e5", _GN_DETECTRON),
    "mask_rcnn_r101_fpn_gn_2x": _gn("r101_fpn_gn-all_2x", "20200205-d96b1b50", _GN_DETECTRON),
    "mask_rcnn_r101_fpn_gn_28_34_36e": _gn(
        "r101_fpn_gn-all_3x", "20200513_181609-0df864f4", _GN_DETECTRON
    ),
    "mask_rcnn_r50_fpn_gn_contrib_2x": _gn("r50_fpn_gn-all_contrib_2x", "20200207-20d3e849", _GN),
    "mask_rcnn_r50_fpn_gn_contrib_28_34_36e": _gn(
        "r50_fpn_gn-all_contrib_3x", "20200225-542aefbc", _GN
    ),
    "faster_rcnn_r50_fpn_gn_65_71_73e": _mmdet(
        "scratch",
        "faster_rcnn_r50_fpn_gn-all_scratch_6x_coco",
        "scratch_faster_rcnn_r50_fpn_gn_6x_bbox_mAP-0.407_20200201_193013-90813d01",
        _GN,
    ),
    "mask_rcnn_r50_fpn_gn_65_71_73e": _mmdet(
        "scratch",
        "mask_rcnn_r50_fpn_gn-all_scratch_6x_coco",
        "scratch_mask_rcnn_r50_fpn_gn_6x_bbox_mAP-0.412__segm_mAP-0.374_20200201_193051-1e190a40",
        _GN,
    ),
    # Detectors of SwitchNorm_Detection
    "faster_rcnn_r50_c4_sn_2x": _drive(
        "sn_detection", "1Eu9XCNWZBpy31wZcyYS49Wtr6y83BwVz", "e2e_faster_rcnn_R-50-C4_2x_sn.pth", 2
    ),
    "faster_rcnn_r50_fpn_sn_2x": _drive(
        "sn_detection", "1ZfqIhrugfQI0gb7i10AGVp6_uTEnqOkY", "e2e_faster_rcnn_R-50-FPN_2x_sn.pth", 2
    ),
    "faster_rcnn_r50_fpn_sn_in_ln_2x": _drive(
        "sn_detection",
        "1N6WiPK52JJmx5Cwv1wgXu0a9NZGtnPFx",
        "e2e_faster_rcnn_R-50-FPN_2x_sn_(8,1).pth",
        1,
    ),
    "mask_rcnn_r50_fpn_sn_in_ln_2x": _drive(
        "sn_detection",
        "12SCgBn3GZOfaNfKcbqWdWUr8A21xqFc7",
        "e2e_mask_rcnn_R-50-FPN_2x_sn_(8,1).pth",
        1,
    ),
    # Detectors of Detectron with GN
    "mask_rcnn_r50_fpn_gn_gn_2x": _detectron("48616381", "R-50-FPN_2x_gn_0416.13_23_38.bTlTI97Q"),
    "mask_rcnn_r101_fpn_gn_gn_2x": _detectron("48616724", "R-101-FPN_2x_gn_0416.13_26_34.GLnri4GR"),
    "mask_rcnn_r50_fpn_gn_gn_3x": _detectron("48734751", "R-50-FPN_3x_gn_0417.09_54_59.nwCTtPVk"),
    "mask_rcnn_r101_fpn_gn_gn_3x": _detectron("48734779", "R-101-FPN_3x_gn_0417.09_55_23.HMtcR8wg"),
}
