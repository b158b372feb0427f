"""Standardized detectron2 convolutions, builders and heads."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2 import layers, model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import nn

import wsbcn_d2
from wsbcn_d2 import norms
from wsbcn_d2.checkpoint import describe_model
from wsbcn_d2.modeling import (
    WNConv2d,
    WSConv2d,
    WSFastRCNNConvFCHead,
    WSMaskRCNNConvUpsampleHead,
    WSRes5ROIHeads,
    standardize_convs,
    standardized,
    use_norm,
)
from wsbcn_d2.norms import WSConvMixin


@pytest.fixture(autouse=True)
def registered():
    wsbcn_d2.register_norms()
    yield
    wsbcn_d2.unregister_norms()


def names_of_standardized(model):
    return {name for name, m in model.named_modules() if isinstance(m, WSConvMixin)}


def reference(weight, eps=1e-5):
    weight = weight.double()
    flat = weight.reshape(len(weight), -1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + eps)
    return flat.reshape(weight.shape)


def test_trap_10_a_converted_conv_keeps_norm_activation_keys_and_empty_input():
    torch.manual_seed(0)
    conv = layers.Conv2d(
        6, 32, 3, stride=2, padding=1, groups=2, bias=False,
        norm=nn.GroupNorm(4, 32), activation=F.relu,
    )  # fmt: skip
    model = nn.Sequential(conv)
    before = copy.deepcopy(model.state_dict())
    calls = []
    conv.register_forward_hook(lambda *a: calls.append(1))
    assert standardize_convs(model) is model and model[0] is conv
    assert type(conv) is WSConv2d and isinstance(conv, layers.Conv2d)
    assert list(model.state_dict()) == list(before)
    x = torch.randn(2, 6, 9, 7)
    expected = F.conv2d(x.double(), reference(conv.weight), None, 2, 1, 1, 2)
    expected = F.relu(F.group_norm(expected, 4))
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-4, atol=1e-5)
    assert calls == [1]
    assert model(x[:0]).shape == (0, 32, 5, 4)


def test_trap_8_only_convs_before_norms_are_standardized(caplog):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.with_norm = layers.Conv2d(4, 8, 3, bias=False, norm=nn.GroupNorm(2, 8))
            self.without = layers.Conv2d(8, 8, 1)
            self.pair = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
            self.other_width = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(8))
            self.listed = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)])
            self.one_d = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4))
            self.three_d = nn.Sequential(nn.Conv3d(4, 4, 3), nn.GroupNorm(1, 4))

    model = Block()
    with caplog.at_level(logging.INFO, logger="wsbcn_d2"):
        standardize_convs(standardize_convs(model))
    assert names_of_standardized(model) == {"with_norm", "pair.0", "one_d.0", "three_d.0"}
    assert "Standardizing the weights of 4 of 8 convolutions of Block" in caplog.text
    assert "4 have no norm" in caplog.text


def test_torchvision_resnet_is_standardized_by_the_order_of_its_children():
    model = standardize_convs(torchvision.models.resnet50(weights=None))
    assert len(names_of_standardized(model)) == 53  # 1 + 16 * 3 + 4


def test_trap_17_a_conv_of_fan_in_one_is_named_and_nothing_is_converted():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4)
    )
    with pytest.raises(ValueError, match=r"convolution '2'.*at least 2 weights"):
        standardize_convs(model)
    assert not names_of_standardized(model)
    with pytest.raises(ValueError, match="eps_mode"):
        standardize_convs(model, eps_mode="middle")


@pytest.mark.parametrize("mode", ["wn", "cwn"])
def test_the_same_convs_are_normalized_instead(mode):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            layers.Conv2d(3, 8, 3, bias=False, norm=nn.GroupNorm(2, 8), activation=F.relu),
            nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)),
            nn.Conv2d(8, 2, 1),
        )

    plain, model = make().eval(), make().eval()
    model[0].weight.requires_grad_(False)
    assert standardize_convs(model, eps_mode=mode) is model
    assert names_of_standardized(model) == {"0", "1.0"}
    assert {n for n, _ in model.named_parameters() if "weight_g" in n} == {
        "0.weight_g", "1.0.weight_g",
    }  # fmt: skip
    assert not model[0].weight_g.requires_grad and model[1][0].weight_g.requires_grad
    x = torch.randn(2, 3, 9, 7)
    if mode == "cwn":
        with torch.no_grad():
            for conv in (plain[0], plain[1][0]):
                conv.weight -= conv.weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        model[1][0].weight_g.mul_(3)
    lengths = model[1][0].weight_g.clone()
    standardize_convs(model, eps_mode=mode)
    assert torch.equal(model[1][0].weight_g, lengths)
    standardize_convs(model)
    assert type(model[0]) is WSConv2d and list(model.state_dict()) == list(plain.state_dict())


def test_weight_norm_is_a_choice_of_lazy_configs_and_recorded():
    cfg = use_norm(model_zoo.get_config("common/models/retinanet.py").model, "GN", standardize=True)
    cfg.backbone.bottom_up.stem.in_channels = 3
    cfg.ws_eps_mode = "cwn"
    with torch.device("meta"):
        model = instantiate(cfg)
    convs = [m for m in model.modules() if isinstance(m, WNConv2d | norms.WNConv2d)]
    assert len(convs) == len(names_of_standardized(model)) > 53
    assert describe_model(model)["ws_eps_mode"] == "cwn"


def test_retinanet_head_is_standardized_but_its_predictors_are_not():
    head = RetinaNetHead(
        input_shape=[ShapeSpec(channels=32)] * 2, num_classes=3, num_anchors=2, conv_dims=[32, 32],
        norm="SN",
    )  # fmt: skip
    standardize_convs(head)
    assert names_of_standardized(head) == {
        "cls_subnet.0", "cls_subnet.3", "bbox_subnet.0", "bbox_subnet.3",
    }  # fmt: skip


def yaml_cfg(name):
    cfg = get_cfg()
    wsbcn_d2.add_wsbcn_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(name))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = "GN"
    return cfg


# 53 convolutions in ResNet-50; 43 up to res4; FPN has a lateral and an output one for each level.
@pytest.mark.parametrize(
    "file, builder, fpn_norm, depth, groups, count",
    [
        ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "build_ws_resnet_backbone", "", 50, 1, 43),
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "build_ws_resnet_fpn_backbone",
         "", 50, 1, 53),
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "build_ws_resnet_fpn_backbone",
         "GN", 50, 32, 61),
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "build_ws_resnet_fpn_backbone",
         "GN", 101, 1, 112),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "build_ws_retinanet_resnet_fpn_backbone",
         "GN", 50, 1, 59),
    ],
)  # fmt: skip
def test_backbones_from_yaml(file, builder, fpn_norm, depth, groups, count):
    cfg = yaml_cfg(file)
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.FPN.NORM = fpn_norm
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NUM_GROUPS = groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64 if groups == 1 else 4
    cfg.MODEL.WSBCN.EPS_MODE = "inside"
    backbone = build_backbone(cfg)
    convs = [m for m in backbone.modules() if isinstance(m, WSConvMixin)]
    assert len(convs) == count
    assert all(conv.eps_mode == "inside" for conv in convs)
    assert all(conv.bias is None and conv.norm is not None for conv in convs)


def test_heads_from_yaml():
    cfg = yaml_cfg("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.ROI_BOX_HEAD.NAME = "WSFastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NORM = "GN"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_MASK_HEAD.NAME = "WSMaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NORM = "BCN"
    model = build_model(cfg)
    assert type(model.roi_heads.box_head) is WSFastRCNNConvFCHead
    assert type(model.roi_heads.mask_head) is WSMaskRCNNConvUpsampleHead
    assert names_of_standardized(model) == {
        *(f"roi_heads.box_head.conv{k}" for k in range(1, 5)),
        *(f"roi_heads.mask_head.mask_fcn{k}" for k in range(1, 5)),
    }


def test_res5_head_from_yaml():
    cfg = yaml_cfg("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")
    cfg.MODEL.ROI_HEADS.NAME = "WSRes5ROIHeads"
    model = build_model(cfg)
    assert type(model.roi_heads) is WSRes5ROIHeads
    names = names_of_standardized(model)
    assert len(names) == 10 and all(name.startswith("roi_heads.res5.") for name in names)


def test_heads_from_lazy_configs_equal_stock_heads_with_standardized_weights():
    torch.manual_seed(0)
    arguments = dict(conv_dims=[32, 32], fc_dims=[16], conv_norm="GN")
    shape = ShapeSpec(channels=32, height=7, width=7)
    ours = instantiate(L(WSFastRCNNConvFCHead)(input_shape=shape, eps_mode="outside", **arguments))
    stock = FastRCNNConvFCHead(shape, **arguments)
    stock.load_state_dict(ours.state_dict())
    for name in ("conv1", "conv2"):
        conv = getattr(stock, name)
        conv.weight.data = reference(conv.weight).float()
    x = torch.randn(5, 32, 7, 7)
    torch.testing.assert_close(ours(x), stock(x), rtol=1e-4, atol=1e-5)


def test_standardized_target_keeps_the_paths_of_a_config():
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    use_norm(model, "SN_IN_LN", "GN", standardize=True)
    assert model._target_ is standardized
    model.roi_heads.num_classes = 7  # paths stay where they were
    built = instantiate(model)
    assert len(names_of_standardized(built)) == 53 + 8 + 4
    assert built.roi_heads.num_classes == 7


def test_use_norm_sets_backbone_and_head_apart():
    model = use_norm(model_zoo.get_config("common/models/mask_rcnn_fpn.py").model, "GN", "")
    assert model.backbone.bottom_up.stem.norm == "GN"
    assert model.backbone.bottom_up.stages.norm == "GN"
    assert model.backbone.norm == ""
    assert model.roi_heads.box_head.conv_norm == ""
    assert model.roi_heads.mask_head.conv_norm == ""
    with pytest.raises(ValueError, match="backbone"):
        use_norm(model.roi_heads, "GN")


def test_c4_lazy_model_takes_norms_in_res5():
    model = use_norm(model_zoo.get_config("common/models/mask_rcnn_c4.py").model, "GN", "SN")
    built = instantiate(model)
    kinds = {type(m.norm).__name__ for m in built.roi_heads.res5.modules() if hasattr(m, "norm")}
    assert kinds == {"SwitchNorm2d"}
    assert type(built.backbone.stem.conv1.norm) is nn.GroupNorm
