"""What a model's or checkpoint's norms are, and how two of them differ."""

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from torch import nn

import wsbcn_d2
from wsbcn_d2.checkpoint import compare_with_checkpoint, describe_model, describe_norms, infer_norms
from wsbcn_d2.norms import WSConv2d


@pytest.fixture(autouse=True)
def registered_norms():
    wsbcn_d2.register_norms()
    yield
    wsbcn_d2.unregister_norms()


def model_with(norm, ws=False):
    """Two convolutions with the norm, then a predictor without."""
    norms = [FrozenBatchNorm2d(32) if norm == "FrozenBN" else get_norm(norm, 32) for _ in range(2)]
    model = nn.ModuleDict(
        {
            "conv1": Conv2d(3, 32, 3, bias=False, norm=norms[0]),
            "conv2": Conv2d(32, 32, 3, bias=False, norm=norms[1]),
            "predictor": nn.Conv2d(32, 4, 1),
        }
    )
    return wsbcn_d2.standardize_convs(model) if ws else model


def compare(theirs, ours, record=True):
    """Load the weights of one model into the other."""
    checkpoint = {"model": theirs.state_dict()}
    if record:
        checkpoint["norms"] = describe_model(theirs)
    return compare_with_checkpoint(checkpoint, ours)


KINDS = ["BN", "FrozenBN", "GN", "LN", "LN_CHW", "IN", "SN", "SN_IN_LN", "SyncSN", "SSN", "BCN",
         "BatchBCN", "SyncBCN"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_recognized_in_a_model(kind):
    described = describe_norms(model_with(kind, ws=True))
    assert described["norms"] == {"conv1.norm": kind, "conv2.norm": kind}
    assert described["convs"] == {"conv1": True, "conv2": True, "predictor": False}


def test_plain_and_torch_convolutions_are_told_apart():
    model = nn.Sequential(WSConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    assert describe_norms(model)["convs"] == {"0": True, "2": False}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_compatible_with_what_its_own_keys_say(kind):
    model = model_with(kind)
    state = model.state_dict()
    assert set(infer_norms(state)) == {"conv1.norm", "conv2.norm"}
    if kind == "SSN":  # has the keys of SN, whose ratios mean something else
        return
    assert compare(model, model, record=False) == []
    assert compare(model, model) == []


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("GN", "SN"), ("BN", "GN"), ("BN", "BCN"), ("SN", "SN_IN_LN"), ("GN", "LN"), ("SN", "SSN")],
)
def test_other_kinds_are_named_on_both_sides(theirs, ours):
    (line,) = compare(model_with(theirs), model_with(ours))
    assert f"checkpoint has {theirs}, model has {ours}: 2 layer(s)" in line
    assert "conv1.norm" in line


@pytest.mark.parametrize(("theirs", "ours"), [("BN", "FrozenBN"), ("SN", "SyncSN")])
def test_kinds_of_one_family_do_not_differ(theirs, ours):
    assert compare(model_with(theirs), model_with(ours)) == []


def test_weight_standardization_is_compared_both_ways():
    plain, ws = model_with("GN"), model_with("GN", ws=True)
    (line,) = compare(plain, ws)
    assert "0 of 3 convolutions in the checkpoint, 2 in the model; they differ in 2" in line
    (line,) = compare(ws, plain)
    assert "2 of 3 convolutions in the checkpoint, 0 in the model; they differ in 2" in line


def test_a_checkpoint_that_does_not_say_is_told_to_a_ws_model_only():
    plain, ws = model_with("GN"), model_with("GN", ws=True)
    (line,) = compare(plain, ws, record=False)
    assert "checkpoint does not say" in line and "model standardizes 2 of 3" in line
    assert compare(ws, plain, record=False) == []
    # Nor to a model none of whose standardized convolutions it has.
    assert compare(nn.ModuleDict({"predictor": nn.Conv2d(32, 4, 1)}), ws, record=False) == []


def test_a_backbone_is_found_inside_a_detector():
    detector = nn.ModuleDict({"backbone": model_with("SN", ws=True)})
    lines = compare(model_with("GN"), detector)
    assert len(lines) == 2 and "backbone.conv1.norm" in lines[0]


def test_detectrons_own_names_are_understood():
    state = {"res2_0_branch2a_bn_s": torch.ones(8), "conv1_w": torch.ones(8, 3, 7, 7)}
    assert infer_norms(state) == {"res2_0_branch2a_bn": "BN"}
    (line,) = compare_with_checkpoint({"model": state}, model_with("GN"))
    assert "checkpoint has BN, model has GN" in line
    assert compare_with_checkpoint({"model": state}, model_with("FrozenBN")) == []
