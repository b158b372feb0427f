"""What is said of a model whose setting is not the one its weights were trained in."""

import logging
from dataclasses import asdict

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

import wsbcn_d2
from wsbcn_d2.checkpoint import (
    Pretraining,
    WSBCNCheckpointer,
    compare_pretraining,
    describe_norms,
)
from wsbcn_d2.modeling import CeilPoolStem, standardize_convs
from wsbcn_d2.norms import SwitchNorm2d


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


def compare(recorded, model, norm, images=None):
    return compare_pretraining(asdict(recorded), describe_norms(backbone(norm)), model, images)


@pytest.mark.parametrize("norm", ["BN", "GN", "SyncSN"])
def test_the_pretrainings_own_setting_raises_no_word(norm):
    recorded = Pretraining("sn", norm=norm, minibatch=2)
    assert compare(recorded, Detector(backbone(norm)), norm, images=2) == []


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_the_stride_in_another_convolution_is_told(stride_in_1x1):
    recorded = Pretraining("mmdet", stride_in_1x1=stride_in_1x1)
    assert compare(recorded, backbone("GN", stride_in_1x1=stride_in_1x1), "GN") == []
    (line,) = compare(recorded, backbone("GN", stride_in_1x1=not stride_in_1x1), "GN")
    first, second = ("1x1", "3x3") if stride_in_1x1 else ("3x3", "1x1")
    assert f"stride in the {first} convolution in pretraining, in the {second}" in line


def test_basic_blocks_have_no_choice_of_stride():
    recorded = Pretraining("torchvision", bottleneck=False, stride_in_1x1=False)
    assert compare(recorded, backbone("BN", stride_in_1x1=True), "BN") == []


def test_another_pooling_in_the_stem_is_told():
    recorded = Pretraining("ssn", stem_pool="ceil")
    assert compare(recorded, backbone("SSN", stem=CeilPoolStem), "SSN") == []
    (line,) = compare(recorded, backbone("SSN"), "SSN")
    assert "stem: ceil max pooling in pretraining, padded in the model" in line


def test_the_other_eps_mode_is_told_of_the_pretrained_convolutions():
    recorded = Pretraining("bcn", ws=True, ws_eps_mode="inside")
    model = nn.ModuleDict({"backbone": standardize_convs(backbone("GN"), eps_mode="inside")})
    # A head's own convolution is nobody's pretraining.
    model["head"] = standardize_convs(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))
    assert compare(recorded, model, "GN") == []
    standardize_convs(model["backbone"], eps_mode="outside")
    (line,) = compare(recorded, model, "GN")
    assert "eps_mode 'inside' in pretraining, 'outside' in the model" in line


def test_the_order_of_colours_and_the_mean_are_told():
    recorded = Pretraining("torchvision")
    (line,) = compare(recorded, Detector(backbone("BN"), "BGR", (103.53, 116.28, 123.675)), "BN")
    assert line == "input: RGB in pretraining, BGR in the model"
    (line,) = compare(recorded, Detector(backbone("BN"), mean=(103.53, 116.28, 123.675)), "BN")
    assert "pixel_mean [123.675, 116.28, 103.53] in pretraining, [103.53, 116.28, 123.675]" in line


# --- minibatch (arXiv:1907.10473, Table XI item 4) ---------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "told"), [(32, 2, True), (2, 32, True), (8, 2, False), (2, 2, False)]
)
def test_a_minibatch_far_from_the_pretrainings_is_told(before, now, told):
    recorded = Pretraining("sn", norm="SN", minibatch=before)
    lines = compare(recorded, Detector(backbone("SN")), "SN", now)
    assert len(lines) == told
    if told:
        assert f"over {before} images in pretraining, over {now} a process" in lines[0]
        assert "Table XI" in lines[0]


def test_synchronized_norms_count_the_images_of_all_processes(monkeypatch):
    recorded = Pretraining("sn", norm="SN", minibatch=32)
    model = Detector(backbone("SyncSN"))
    assert len(compare(recorded, model, "SN", 2)) == 1
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 8)
    assert compare(recorded, model, "SN", 2) == []  # 16
    (line,) = compare(Pretraining("sn", norm="SN", minibatch=2), model, "SN", 2)
    assert "over 2 images in pretraining, over 16 over all processes" in line


@pytest.mark.parametrize("norm", ["GN", "SN_IN_LN", "BCN", "LN", "IN"])
def test_norms_without_batch_statistics_do_not_care(norm):
    recorded = Pretraining("sn", norm=norm, minibatch=32)
    assert compare(recorded, Detector(backbone(norm)), norm, 1) == []


def test_frozen_norms_do_not_care():
    recorded = Pretraining("torchvision", norm="BN", minibatch=32)
    body = backbone("BN")
    assert len(compare(recorded, body, "BN", 1)) == 1
    for parameter in body.parameters():
        parameter.requires_grad = False
    assert compare(recorded, body, "BN", 1) == []
    assert compare(recorded, backbone("FrozenBN"), "BN", 1) == []
    assert any(isinstance(m, FrozenBatchNorm2d) for m in backbone("FrozenBN").modules())


def test_norms_of_heads_that_were_not_pretrained_do_not_care():
    recorded = Pretraining("torchvision", norm="BN", minibatch=32)
    model = nn.ModuleDict({"body": backbone("FrozenBN"), "head": SwitchNorm2d(8)})
    assert compare(recorded, model, "BN", 2) == []


def test_an_evaluation_has_no_minibatch():
    recorded = Pretraining("sn", norm="SN", minibatch=32)
    assert compare(recorded, Detector(backbone("SN")), "SN") == []


# --- in the checkpointer ---------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch):
    """Messages to the check's logger, whatever an earlier test set the loggers to."""
    messages = []
    logger = logging.getLogger("wsbcn_d2.checkpoint.pretraining_check")
    monkeypatch.setattr(logger, "warning", lambda m, *args: messages.append(m % args))
    monkeypatch.setattr(logger, "info", lambda m, *args: messages.append(m % args))
    return messages


def converted(tmp_path, norm, **fields):
    body = backbone(norm)
    content = {
        "model": body.state_dict(),
        "matching_heuristics": True,
        "norms": describe_norms(body),
        "pretraining": asdict(Pretraining(**fields, norm=norm)),
    }
    torch.save(content, tmp_path / "x.pth")
    return str(tmp_path / "x.pth")


def test_loading_warns_loudly_and_names_the_file(tmp_path, log):
    path = converted(tmp_path, "SN", source="torchvision", minibatch=32)
    model = Detector(backbone("SN"), "BGR")
    rest = WSBCNCheckpointer(model, images_per_process=1).load(path)
    (message,) = log
    assert "PRETRAINING DIFFERS" in message and path in message
    assert "  * input: RGB" in message and "  * minibatch: statistics over 32 images" in message
    assert "pretraining" not in rest and "norms" not in rest


def test_loading_what_fits_says_nothing(tmp_path, log):
    path = converted(tmp_path, "SN", source="torchvision", minibatch=2)
    WSBCNCheckpointer(Detector(backbone("SN")), images_per_process=2).load(path)
    assert log == []


def test_a_minibatch_that_is_not_recorded_is_mentioned(tmp_path, log):
    path = converted(tmp_path, "SN", source="torchvision")
    WSBCNCheckpointer(Detector(backbone("SN")), images_per_process=2).load(path)
    (message,) = log
    assert "not recorded; SN sees 2 images a process" in message


def test_the_released_sns_unbiased_variances_are_mentioned(tmp_path, log):
    path = converted(tmp_path, "SN", source="sn", minibatch=2, unbiased=True)
    WSBCNCheckpointer(Detector(backbone("SN")), images_per_process=2).load(path)
    (message,) = log
    assert "divisor L - 1" in message and "unbiased=True" in message
    log.clear()
    exact = Detector(backbone(lambda channels: SwitchNorm2d(channels, unbiased=True)))
    WSBCNCheckpointer(exact, images_per_process=2).load(path)
    assert log == []
