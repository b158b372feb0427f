"""What is said of a model whose setting is not the one its weights were trained in."""

from dataclasses import asdict

import pytest
import torch
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

import wsbcn_d2
from wsbcn_d2.checkpoint import (
    Pretraining,
    compare_with_checkpoint,
    describe_model,
    describe_norms,
)
from wsbcn_d2.checkpoint.comparison import compare_parameters
from wsbcn_d2.modeling import CeilPoolStem, standardize_convs


@pytest.fixture(autouse=True)
def registered_norms():
    wsbcn_d2.register_norms()
    yield
    wsbcn_d2.unregister_norms()


def backbone(norm, *, stem=BasicStem, stride_in_1x1=False):
    stages = [
        ResNet.make_stage(
            BottleneckBlock, 1, stride_per_block=[stride], in_channels=channels, out_channels=64,
            bottleneck_channels=32, norm=norm, stride_in_1x1=stride_in_1x1,
        )
        for stride, channels in ((1, 32), (2, 64))
    ]  # fmt: skip
    return ResNet(stem(3, 32, norm), stages, out_features=["res3"])


class Detector(nn.Module):
    """As much of a detector as the comparison looks at."""

    def __init__(self, body, input_format="RGB", mean=(123.675, 116.28, 103.53)):
        super().__init__()
        self.backbone = body
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor((58.395, 57.12, 57.375)).view(-1, 1, 1))


def compare(recorded, model, norm):
    body = backbone(norm)
    checkpoint = {
        "model": body.state_dict(),
        "norms": describe_norms(body),
        "pretraining": asdict(recorded),
    }
    return compare_with_checkpoint(checkpoint, model)


@pytest.mark.parametrize("norm", ["BN", "GN", "SyncSN"])
def test_the_pretrainings_own_setting_raises_no_word(norm):
    recorded = Pretraining("sn", norm=norm, minibatch=2)
    assert compare(recorded, Detector(backbone(norm)), norm) == []


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_the_stride_in_another_convolution_is_told(stride_in_1x1):
    recorded = Pretraining("mmdet", stride_in_1x1=stride_in_1x1)
    assert compare(recorded, backbone("GN", stride_in_1x1=stride_in_1x1), "GN") == []
    (line,) = compare(recorded, backbone("GN", stride_in_1x1=not stride_in_1x1), "GN")
    assert f"stride_in_1x1: {stride_in_1x1} in the checkpoint, {not stride_in_1x1} in" in line


def test_another_pooling_in_the_stem_is_told():
    recorded = Pretraining("ssn", stem_pool="ceil")
    assert compare(recorded, backbone("SSN", stem=CeilPoolStem), "SSN") == []
    (line,) = compare(recorded, backbone("SSN"), "SSN")
    assert "stem_pool: 'ceil' in the checkpoint, 'padded' in the model" in line


def test_the_other_eps_mode_is_told():
    inside = standardize_convs(backbone("GN"), eps_mode="inside")
    outside = standardize_convs(backbone("GN"), eps_mode="outside")
    for checkpoint in (
        {"norms": describe_model(inside)},
        {
            "norms": describe_norms(inside),
            "pretraining": asdict(Pretraining("bcn", ws=True, ws_eps_mode="inside")),
        },
    ):
        checkpoint["model"] = inside.state_dict()
        assert compare_with_checkpoint(checkpoint, inside) == []
        (line,) = compare_with_checkpoint(checkpoint, outside)
        assert "ws_eps_mode: 'inside' in the checkpoint, 'outside' in the model" in line


def test_weights_without_ws_have_no_eps_mode():
    recorded = Pretraining("mmdet", ws=False)
    (line,) = compare(recorded, standardize_convs(backbone("GN"), eps_mode="inside"), "GN")
    assert line.startswith("weight standardization: 0 of")


def test_the_order_of_colours_and_the_mean_are_told():
    recorded = Pretraining("torchvision")
    (line,) = compare(recorded, Detector(backbone("BN"), "BGR", (103.53, 116.28, 123.675)), "BN")
    assert "input_format: 'RGB' in the checkpoint, 'BGR' in the model" in line
    (line,) = compare(recorded, Detector(backbone("BN"), mean=(103.53, 116.28, 123.675)), "BN")
    assert "pixel_mean: (123.675, 116.28, 103.53) in the checkpoint, (103.53, 116.28, 123" in line


def test_a_checkpoint_of_our_own_has_the_record_too():
    theirs = Detector(backbone("GN", stride_in_1x1=True), "BGR")
    checkpoint = {"model": theirs.state_dict(), "norms": describe_model(theirs)}
    assert compare_with_checkpoint(checkpoint, theirs) == []
    lines = compare_with_checkpoint(checkpoint, Detector(backbone("GN")))
    assert [line.partition(":")[0] for line in lines] == ["stride_in_1x1", "input_format"]


def test_parameters_that_do_not_fit_are_counted_and_named():
    def head(classes, name="head"):
        return nn.ModuleDict({"body": nn.Linear(2, 2), name: nn.Linear(2, classes)})

    state = head(3).state_dict()
    assert compare_parameters(state, head(3)) == []
    (line,) = compare_parameters(state, head(10))
    assert "2 tensor(s) of another shape" in line and "head.weight: (3, 2) in the ch" in line
    only = compare_parameters(state, head(3, "top"))
    assert only == [
        "2 tensor(s) only in the checkpoint: head.weight, head.bias",
        "2 tensor(s) only in the model: top.weight, top.bias",
    ]
