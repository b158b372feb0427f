"""A folded detector computes the same, and loads without this project where it says so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from tests.deploy.detectors import NORMS, load, make_images
from wsbcn_d2.deploy import fold_model, load_detector, save_folded
from wsbcn_d2.errors import ConfigError
from wsbcn_d2.norms import BatchChannelNorm2d, SparseSwitchNorm2d, WSConvMixin

REMAINING = {
    "SN": "SwitchNorm2d",
    "SN_IN_LN": "SwitchNorm2d",
    "SyncSN": "SyncSwitchNorm2d",
    "SSN": "SparseSwitchNorm2d",
    "IN": "InstanceNorm2d",
}
# Norms of the quick model, all of them right behind a convolution.
LAYERS = 25
_ALONE = """
import sys
sys.modules["wsbcn_d2"] = None  # an import of it fails
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
x = torch.load("x.pt")
for config in sys.argv[1:]:
    cfg = LazyConfig.load(config)
    model = instantiate(cfg.model).eval()
    DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
    with torch.no_grad():
        torch.save(list(model.backbone(x).values()), config + ".pt")
"""


def features(model, x):
    with torch.no_grad():
        return list(model.backbone(x).values())


@pytest.mark.parametrize("name", NORMS)
def test_it_computes_the_same(name, tmp_path):
    detector = load(tmp_path, name)
    state = {key: value.clone() for key, value in detector.model.state_dict().items()}
    folding = fold_model(detector.model)
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(features(detector.model, x), features(folding.model, x), strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * ours.abs().max()
    for image in make_images():
        inputs = [{"image": detector.tensor(image)}]
        with torch.no_grad():
            ours, theirs = (m(inputs)[0]["instances"] for m in (detector.model, folding.model))
        assert len(ours) == len(theirs) > 0
        assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
    assert not any(isinstance(m, WSConvMixin) for m in folding.model.modules())
    assert set(folding.remaining) == ({REMAINING[name]} if name in REMAINING else set())
    removed = LAYERS if name in ("BN", "FrozenBN", "BRN", "hard SSN") else 0
    assert len(folding.removed) == removed
    assert len(folding.biased) == (LAYERS if name == "WS+BCN" else removed)
    # The model itself is as it was.
    for key, value in detector.model.state_dict().items():
        assert torch.equal(value, state[key])


def test_without_norms_of_ours_it_loads_without_this_project(tmp_path):
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    torch.save(x, tmp_path / "x.pt")
    expected = {}
    for name in ("WS+GN", "WS+BCN", "BN", "hard SSN"):
        detector = load(tmp_path, name)
        path = save_folded(fold_model(detector.model), detector.cfg, str(tmp_path / name))
        assert path.name == ("config.yaml" if name == "WS+GN" else "config.py")
        expected[str(path)] = features(detector.model, x)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", _ALONE, *expected]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    for path, ours in expected.items():
        for x, y in zip(ours, torch.load(f"{path}.pt"), strict=True):
            assert (x - y).abs().max() <= 1e-4 * x.abs().max()


@pytest.mark.parametrize("name", ["SN", "WS+BCN"])
def test_this_project_loads_it_too(name, tmp_path):
    detector = load(tmp_path, name)
    folding = fold_model(detector.model)
    path = save_folded(folding, detector.cfg, str(tmp_path / "folded"))
    again = load_detector(str(path))  # with the weights that the config names
    image = make_images()[0]
    assert_close(again(image).scores, detector(image).scores, rtol=0, atol=1e-4)


def test_ratios_that_are_not_hard_stay(tmp_path):
    detector = load(tmp_path, "hard SSN")
    layer = next(m for m in detector.model.modules() if isinstance(m, SparseSwitchNorm2d))
    layer.mean_fixed.fill_(0)  # the instances' mean
    folding = fold_model(detector.model)
    assert len(folding.removed) == LAYERS - 1
    assert [len(names) for names in folding.remaining.values()] == [1]


def test_bcn_of_other_groups_stays(tmp_path):
    detector = load(tmp_path, "WS+BCN")
    conv = detector.model.backbone.bottom_up.stem.conv1
    conv.norm = BatchChannelNorm2d(conv.out_channels, num_groups=4)
    folding = fold_model(detector.model)
    assert len(folding.remaining["BatchChannelNorm2d"]) == LAYERS and not folding.biased


def test_yaml_configs_take_weight_standardization_only(tmp_path):
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from tests.engine.tiny_run import yaml_overrides
    from wsbcn_d2.engine import load_config, resolve_config_file

    path = resolve_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    small = [*yaml_overrides(), "MODEL.BACKBONE.NAME", "build_ws_resnet_fpn_backbone"]
    cfg = load_config(path, small)
    model = build_model(cfg)
    folding = fold_model(model)
    with pytest.raises(ConfigError, match="would get a bias"):
        save_folded(folding, cfg, str(tmp_path / "folded"))
    assert not (tmp_path / "folded" / "model.pth").exists()
    folding.biased.clear()
    text = save_folded(folding, cfg, str(tmp_path / "folded")).read_text()
    stock = get_cfg()
    stock.merge_from_other_cfg(stock.load_cfg(text))
    assert stock.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
