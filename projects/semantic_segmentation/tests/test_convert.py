"""Converted releases give the scores of the released networks, which are written here.

From their formulas and names: torchvision's ResNet with other layers, dilated, and each head.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyConfig, instantiate
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from projects.semantic_segmentation.semantic_segmentation.convert import (
    convert_files,
    convert_segmentor,
)
from tests.checkpoint.published import ReleasedBCN, ReleasedSN, WSConv, randomize
from wsbcn_d2.checkpoint import WSBCNCheckpointer
from wsbcn_d2.norms import SwitchNorm2d

CONFIGS = "projects/semantic_segmentation/configs"


def dilated(conv, norm, dilations):
    """torchvision's ResNet-50 of two blocks a stage, half as wide; not its classifier."""
    network = ResNet(
        Bottleneck,
        [2, 2, 2, 2],
        width_per_group=32,
        norm_layer=norm,
        replace_stride_with_dilation=dilations,
    )
    del network.fc, network.avgpool
    return replaced(network, conv)


def replaced(module, conv):
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            child.__class__ = conv
    return module


class ReleasedASPP(nn.Module):
    def __init__(self, conv, norm, channels=2048, depth=256, num_classes=21):
        super().__init__()
        self.aspp1 = conv(channels, depth, 1, bias=False)
        for i, rate in ((2, 6), (3, 12), (4, 18)):
            layer = conv(channels, depth, 3, dilation=rate, padding=rate, bias=False)
            setattr(self, f"aspp{i}", layer)
        self.aspp5 = conv(channels, depth, 1, bias=False)
        for i in range(1, 6):
            setattr(self, f"aspp{i}_bn", norm(depth))
        self.conv2 = conv(5 * depth, depth, 1, bias=False)
        self.bn2 = norm(depth)
        self.conv3 = nn.Conv2d(depth, num_classes, 1)

    def forward(self, x):
        branches = []
        for i in range(1, 6):
            pooled = x.mean((2, 3), keepdim=True) if i == 5 else x
            y = getattr(self, f"aspp{i}_bn")(getattr(self, f"aspp{i}")(pooled)).relu()
            branches.append(y.expand(-1, -1, *x.shape[2:]) if i == 5 else y)
        return self.conv3(self.bn2(self.conv2(torch.cat(branches, 1))).relu())


class ReleasedC1(nn.Module):
    def __init__(self, norm, num_classes=150, channels=2048):
        super().__init__()
        for name, width in (("", channels), ("_deepsup", channels // 2)):
            conv = nn.Conv2d(width, channels // 4, 3, padding=1, bias=False)
            setattr(self, f"cbr{name}", nn.Sequential(conv, norm(channels // 4), nn.ReLU()))
            setattr(self, f"conv_last{name}", nn.Conv2d(channels // 4, num_classes, 1))

    def forward(self, stages):
        return self.conv_last(self.cbr(stages[-1])), self.conv_last_deepsup(
            self.cbr_deepsup(stages[-2])
        )


def features(network, x):
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    stages = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stages.append(stage(x))
        x = stages[-1]
    return stages


def renamed(state, norm):
    """The names that the release gives norms: ``bn1`` is ``sn1``."""
    return {key.replace("bn", norm) if norm == "sn" else key: x for key, x in state.items()}


def segmentor(recipe, norm=None):
    """A recipe's network with the reference's few blocks, in evaluation."""
    config = LazyConfig.load(f"{CONFIGS}/{recipe}.py").model
    for stage in config.backbone.stages:
        stage.num_blocks = 2
        stage.stride_per_block = stage.stride_per_block[:2]
        stage.dilation_per_block = stage.dilation_per_block[:2]
        stage.bottleneck_channels //= 2
        if norm is not None:
            stage.norm = norm
    if norm is not None:
        config.backbone.stem.norm = norm
        config.sem_seg_head.norm = config.auxiliary_head.norm = norm
    return instantiate(config).eval()


@pytest.mark.parametrize(
    ("source", "norm", "recipe"),
    [
        ("deeplab_ws", partial(nn.GroupNorm, 32), "voc/deeplab_v3_r101_ws_gn_50e"),
        ("deeplab_bcn", ReleasedBCN, "voc/deeplab_v3_r101_ws_bcn_50e"),
    ],
)
def test_deeplab_v3(tmp_path, caplog, source, norm, recipe):
    network = dilated(WSConv, norm, [False, False, True])
    network.aspp = ReleasedASPP(WSConv, norm)
    randomize(network, seed=1)
    network.eval()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}, "epoch": 50},
        tmp_path / "released.pth",
    )
    convert_files([tmp_path / "released.pth"], tmp_path / "converted.pth", source)
    ours = segmentor(recipe)
    WSBCNCheckpointer(ours, complete=True).load(str(tmp_path / "converted.pth"))
    assert "DIFFERS" not in caplog.text
    images = torch.randn(2, 3, 65, 81, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = F.interpolate(
            network.aspp(features(network, images)[-1]),
            (65, 81),
            mode="bilinear",
            align_corners=True,
        )
        scores = ours.scores(images)
    assert scores.shape == (2, 21, 65, 81)
    assert theirs.std() > 0.1
    assert torch.allclose(scores, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_sn_encoder_and_decoder(tmp_path):
    encoder, decoder = dilated(nn.Conv2d, ReleasedSN, [False, True, True]), ReleasedC1(ReleasedSN)
    for seed, network in enumerate((encoder, decoder)):
        randomize(network, seed)
        network.eval()
    # So that its running variance is one that a stem can have.
    encoder.conv1.weight.data *= 8
    torch.save(renamed(encoder.state_dict(), "sn"), tmp_path / "encoder_epoch_20.pth")
    torch.save(decoder.state_dict(), tmp_path / "decoder_epoch_20.pth")
    files = [tmp_path / f"{name}_epoch_20.pth" for name in ("encoder", "decoder")]
    converted = convert_files(files, tmp_path / "converted.pth", "sn")
    ours = segmentor("ade20k/deeplab_r50_sn_8x2_100k", partial(SwitchNorm2d, unbiased=True))
    ours.load_state_dict(converted["model"], strict=True)
    images = torch.randn(1, 3, 64, 72, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stages = ours.backbone(images)
        scores = [ours.sem_seg_head.layers(stages), ours.auxiliary_head.layers(stages)]
        for found, expected in zip(scores, decoder(features(encoder, images)), strict=True):
            assert expected.std() > 0.1
            tolerance = 1e-4 * float(expected.abs().max())
            assert torch.allclose(found, expected, rtol=1e-4, atol=tolerance)


def test_what_is_not_known_is_refused():
    encoder = dilated(nn.Conv2d, ReleasedSN, [False, True, True])
    state = renamed(encoder.state_dict(), "sn")
    with pytest.raises(ValueError, match="decoder in a second file"):
        convert_segmentor(state, "sn")
    with pytest.raises(ValueError, match="unknown source 'pspnet'; known: deeplab_ws"):
        convert_segmentor(state, "pspnet")
    with pytest.raises(ValueError, match=r"no place in a ResNet.*\n  ppm\.0"):
        convert_segmentor({**state, "ppm.0.weight": torch.zeros(1)}, "sn")
