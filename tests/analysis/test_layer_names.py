"""Layers are called what people call them."""

from __future__ import annotations

import pytest

from wsbcn_d2.analysis import layer_label, layer_part


@pytest.mark.parametrize(
    ("name", "label", "part"),
    [
        ("backbone.bottom_up.stem.conv1.norm", "stem", "stem"),
        ("backbone.bottom_up.stem.conv1_2.norm", "stem.conv1_2", "stem"),
        ("module.backbone.bottom_up.res2.0.conv1.norm", "res2.0.conv1", "res2"),
        ("backbone.res4.5.shortcut.norm", "res4.5.shortcut", "res4"),
        ("backbone.fpn_lateral3.norm", "FPN lateral3", "FPN"),
        ("backbone.fpn_output5.norm", "FPN output5", "FPN"),
        ("roi_heads.box_head.conv1.norm", "box head conv1", "box head"),
        ("roi_heads.box_head.2.conv1.norm", "box head 2.conv1", "box head"),
        ("roi_heads.mask_head.mask_fcn4.norm", "mask head conv4", "mask head"),
        ("roi_heads.res5.1.conv2.norm", "res5.1.conv2", "res5"),
        ("head.cls_subnet.1.norm", "class subnet 1", "class subnet"),
        ("sem_seg_head.p3.0.norm", "semantic head p3.0", "semantic head"),
        ("layer1.bn1", "layer1.bn1", "layer1"),
    ],
)
def test_names_of_detectors(name: str, label: str, part: str) -> None:
    assert (layer_label(name), layer_part(name)) == (label, part)
