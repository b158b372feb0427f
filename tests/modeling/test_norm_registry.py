"""Names in detectron2's get_norm: reach, idempotence, undoing; norms in detectron2's machinery."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, batch_norm, get_norm
from detectron2.modeling import build_model
from detectron2.modeling.backbone import fpn, resnet
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

import wsbcn_d2
from wsbcn_d2 import norms
from wsbcn_d2.checkpoint import compare_with_checkpoint, describe_model
from wsbcn_d2.modeling import GroupNorm1, InstanceNorm2d, known_norms, norm_registry

held_before_registration = partial(get_norm, "SN")

OURS = {
    "SN": norms.SwitchNorm2d,
    "SyncSN": norms.SyncSwitchNorm2d,
    "SN_IN_LN": norms.SwitchNorm2d,
    "SSN": norms.SparseSwitchNorm2d,
    "BCN": norms.BatchChannelNorm2d,
    "BatchBCN": norms.BatchChannelNorm2d,
    "SyncBCN": norms.BatchChannelNorm2d,
    "IN": InstanceNorm2d,
    "LN_CHW": GroupNorm1,
    "BRN": norms.BatchRenorm2d,
    "exactSyncBN": norms.SyncBatchNorm2d,
}


@pytest.fixture
def registered():
    wsbcn_d2.register_norms()
    yield
    wsbcn_d2.unregister_norms()


def tiny_cfg(norm, **overrides):
    cfg = get_cfg()
    wsbcn_d2.add_wsbcn_config(cfg)
    cfg.merge_from_file(
        model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    )
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.FPN.NORM = norm
    cfg.MODEL.ROI_BOX_HEAD.NORM = norm
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.NORM = norm
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    for key, value in overrides.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize("name", OURS)
def test_each_name_builds_its_norm(registered, name):
    norm = get_norm(name, 64)
    assert type(norm) is OURS[name]
    x = torch.randn(2, 64, 5, 3)
    assert norm(x).shape == x.shape
    assert norm(x[:0]).shape == (0, 64, 5, 3)


def test_names_that_share_a_class_differ_as_they_say(registered):
    assert get_norm("SN", 8).statistics == ("in", "ln", "bn")
    assert get_norm("SN_IN_LN", 8).statistics == ("in", "ln")
    kinds = [get_norm(name, 32).statistics for name in ("BCN", "BatchBCN", "SyncBCN")]
    assert kinds == ["estimate", "batch", "sync"]


def test_instance_norm_equals_torchs_and_takes_single_positions(registered):
    torch.manual_seed(3)
    ours, theirs = get_norm("IN", 6), nn.InstanceNorm2d(6, affine=True)
    ours.weight.data.uniform_(0.5, 2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 6, 4, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(x[:, :, :1, :1]), torch.zeros(3, 6, 1, 1))


def test_trap_6_registration_reaches_every_holder_of_get_norm(registered):
    for holder in (get_norm, batch_norm.get_norm, resnet.get_norm, fpn.get_norm):
        assert isinstance(holder("SN", 8), norms.SwitchNorm2d)
    assert isinstance(held_before_registration(8), norms.SwitchNorm2d)
    script = (
        "import wsbcn_d2; wsbcn_d2.register_norms()\n"
        "from detectron2.modeling.meta_arch.retinanet import get_norm\n"
        "assert type(get_norm('SyncSN', 8)).__name__ == 'SyncSwitchNorm2d'"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_trap_6_registration_is_idempotent_and_undone():
    code = batch_norm.get_norm.__code__
    for _ in range(2):
        wsbcn_d2.register_norms()
    assert isinstance(get_norm("SN", 8), norms.SwitchNorm2d)
    for _ in range(2):
        wsbcn_d2.unregister_norms()
    assert batch_norm.get_norm.__code__ is code
    with pytest.raises(KeyError):
        get_norm("SN", 8)
    assert isinstance(get_norm("GN", 32), nn.GroupNorm)


def test_stock_names_and_callables_keep_working(registered):
    wsbcn_d2.unregister_norms()
    stock = {name: type(get_norm(name, 32)) for name in known_norms() if name not in OURS}
    wsbcn_d2.register_norms()
    assert len(stock) == 8
    for name, kind in stock.items():
        assert type(get_norm(name, 32)) is kind
    assert get_norm("", 8) is None and get_norm(None, 8) is None
    coarse = partial(norms.BatchChannelNorm2d, num_groups=2)
    assert get_norm(coarse, 8).num_groups == 2


def test_unknown_name_lists_the_known_ones(registered):
    with pytest.raises(ValueError, match=r"unknown norm 'GNN'.*BCN.*GN.*SN.*SyncSN"):
        get_norm("GNN", 8)


@pytest.mark.parametrize("name", [*OURS, "GN"])
def test_trap_7_norm_parameters_get_the_weight_decay_of_norms(registered, name):
    cfg = tiny_cfg(name, SOLVER__WEIGHT_DECAY_NORM=0.0, SOLVER__WEIGHT_DECAY=1e-4)
    model = build_model(cfg)
    expected = {
        id(p)
        for module in model.modules()
        if isinstance(module, (*set(OURS.values()), nn.GroupNorm))
        for p in module.parameters()
        if p.requires_grad
    }
    assert len(expected) > 50
    by_yaml = build_optimizer(cfg, model).param_groups
    by_lazy = get_default_optimizer_params(
        model, base_lr=0.1, weight_decay=1e-4, weight_decay_norm=0.0
    )
    for groups in (by_yaml, by_lazy):
        undecayed = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
        assert undecayed == expected


@pytest.mark.parametrize("name", [*OURS, "GN", "BN", "SyncBN"])
def test_freeze_at_stops_gradients_and_statistics_of_every_norm(registered, name):
    cfg = tiny_cfg(name, MODEL__BACKBONE__FREEZE_AT=2)
    torch.manual_seed(0)
    bottom_up = build_model(cfg).backbone.bottom_up.train()
    frozen = [bottom_up.stem, bottom_up.res2]
    state = {f"{i}.{k}": v.clone() for i, m in enumerate(frozen) for k, v in m.state_dict().items()}
    if name == "SyncBN":  # a live nn.SyncBatchNorm does not run on CPU
        assert not any(isinstance(m, nn.SyncBatchNorm) for part in frozen for m in part.modules())
        return
    x = torch.randn(2, 3, 64, 64)
    outputs = bottom_up(x)
    outputs["res5"].sum().backward()
    assert not any(p.requires_grad or p.grad is not None for m in frozen for p in m.parameters())
    assert bottom_up.res3[0].conv1.weight.grad is not None
    for i, part in enumerate(frozen):
        for key, value in part.state_dict().items():
            torch.testing.assert_close(value, state[f"{i}.{key}"], rtol=0, atol=0)
        norms_of_part = [m.norm for m in part.modules() if getattr(m, "norm", None) is not None]
        kind = FrozenBatchNorm2d if name == "BN" else OURS.get(name, nn.GroupNorm)
        assert norms_of_part and all(type(m) is kind for m in norms_of_part)
    in_training = outputs["res2"].detach()
    torch.testing.assert_close(bottom_up.eval()(x)["res2"], in_training, rtol=0, atol=0)


def test_trap_14_flops_of_convolutions_are_counted_through_our_norms(registered):
    from fvcore.nn import FlopCountAnalysis

    def conv_flops(name, standardize):
        cfg = tiny_cfg(name)
        backbone = build_model(cfg).backbone.eval()
        if standardize:
            wsbcn_d2.standardize_convs(backbone)
        counted = FlopCountAnalysis(backbone, torch.randn(1, 3, 64, 64))
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return counted.by_operator()["conv"]

    stock = conv_flops("GN", False)
    assert stock > 0
    for name in ("SN", "BCN", "SSN"):
        assert conv_flops(name, True) == stock


class RootMeanSquareNorm2d(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, x):
        return x * self.weight[:, None, None] / x.square().mean((1, 2, 3), keepdim=True).sqrt()


def test_a_new_norm_is_a_function_and_a_row(registered, monkeypatch):
    row = norm_registry.Norm(RootMeanSquareNorm2d, (RootMeanSquareNorm2d,), "RMS", "ranks")
    monkeypatch.setitem(norm_registry.NORMS, "RMS", row)
    norm = get_norm("RMS", 8)
    assert type(norm) is RootMeanSquareNorm2d and "RMS" in known_norms()
    model, other = nn.Sequential(norm), nn.Sequential(get_norm("SN", 8))
    checkpoint = {"model": model.state_dict(), "norms": describe_model(model)}
    assert checkpoint["norms"]["norms"] == {"0": "RMS"}
    assert compare_with_checkpoint(checkpoint, model) == []
    (line,) = compare_with_checkpoint(checkpoint, other)
    assert "checkpoint has RMS, model has SN" in line
    with pytest.raises(ValueError, match=r"known: .*RMS"):
        get_norm("RSM", 8)


@pytest.mark.parametrize("name", [n for n in norm_registry.NORMS if norm_registry.NORMS[n].classes])
def test_each_norm_is_told_by_its_class_and_settings(registered, name):
    assert norm_registry.norm_name(get_norm(name, 32)) == name
    assert norm_registry.norm_name(nn.Conv2d(3, 8, 1)) is None
