"""Every source's weights, converted: the same features as the network that they come from."""

from __future__ import annotations

import pickle
import re
from functools import partial

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import nn
from torchvision.models import resnet

import wsbcn_d2
from tests.checkpoint.published import (
    STAGES,
    Reference,
    ReleasedBCN,
    ReleasedSN,
    ReleasedSSN,
    WSConv,
    WSConvInside,
    blobs,
    detectron_pytorch,
    norms_named,
)
from wsbcn_d2.checkpoint import WSBCNCheckpointer, convert_state, convert_weights
from wsbcn_d2.checkpoint.reading import unwrap
from wsbcn_d2.modeling import CeilPoolStem, standardize_convs
from wsbcn_d2.norms import BatchChannelNorm2d, SparseSwitchNorm2d, SwitchNorm2d

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def detector(conversion, norm):
    """A model whose backbone is of detectron2, made as the conversion says."""
    made = conversion.pretraining
    wide = 4 if made.bottleneck else 1
    stages, channels = [], 64
    for i, blocks in enumerate(made.blocks):
        options = {}
        if made.bottleneck:
            options["bottleneck_channels"] = made.groups * made.width_per_group * 2**i
            options["num_groups"] = made.groups
            options["stride_in_1x1"] = made.stride_in_1x1
        stages.append(
            ResNet.make_stage(
                BottleneckBlock if made.bottleneck else BasicBlock,
                blocks,
                stride_per_block=[1 if i == 0 else 2] + [1] * (blocks - 1),
                in_channels=channels,
                out_channels=64 * wide * 2**i,
                norm=norm,
                **options,
            )
        )
        channels = 64 * wide * 2**i
    stem = CeilPoolStem if made.stem_pool == "ceil" else BasicStem
    backbone = ResNet(stem(3, 64, norm), stages, out_features=list(STAGES[: len(stages)]))
    if made.ws:
        standardize_convs(backbone, eps_mode=made.ws_eps_mode)
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": backbone})})
    return model.eval()


def assert_same_features(reference, path, norm, tmp_path, **options):
    """Convert, load as a training would, compare each stage; returns the conversion."""
    output = tmp_path / "converted.pth"
    conversion = convert_weights(path, output, **options)
    model = detector(conversion, norm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))  # whatever is not loaded shows
    WSBCNCheckpointer(model).load(str(output))
    expected = reference.features(IMAGES)
    with torch.no_grad():
        found = model["backbone"]["bottom_up"].double()(IMAGES.double())
    for stage in STAGES:
        scale = expected[stage].abs().max().item()
        assert scale > 0.1  # something came through
        error = (found[stage] - expected[stage]).abs().max().item() / max(scale, 1)
        assert error < 1e-5, f"{stage}: {error}"
    return conversion


def saved(content, tmp_path, name="published.pth"):
    path = tmp_path / name
    torch.save(content, path)
    return path


GN = partial(nn.GroupNorm, 32)
ROUNDS = {"bn": nn.BatchNorm2d, "gn": GN}


@pytest.mark.parametrize("block", ["basic", "bottleneck", "resnext"])
def test_torchvision_with_bn(tmp_path, block):
    options = {
        "basic": {"block": resnet.BasicBlock, "layers": (1, 2, 1, 1), "width": 64},
        "bottleneck": {},
        "resnext": {"groups": 32, "width": 4},
    }[block]
    reference = Reference(nn.BatchNorm2d, **options)
    path = saved(reference.state(), tmp_path)
    conversion = assert_same_features(reference, path, "BN", tmp_path)
    made = conversion.pretraining
    assert (made.source, made.norm, made.ws) == ("torchvision", "BN", False)
    assert made.blocks == reference.layers and made.bottleneck == (block != "basic")
    assert (made.groups, made.width_per_group) == (reference.groups, reference.width)


def test_the_same_weights_in_a_frozen_bn(tmp_path):
    reference = Reference(nn.BatchNorm2d)
    path = saved({"state_dict": reference.state()}, tmp_path)
    assert_same_features(reference, path, "FrozenBN", tmp_path)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_timm(tmp_path, norm):
    timm = pytest.importorskip("timm", reason="timm is not installed (requirements-dev.txt has it)")
    layer = {"bn": "batchnorm2d", "gn": "groupnorm"}[norm]
    network = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, (1, 1, 1, 1), 7, base_width=32, norm_layer=layer
    )
    # timm's own network computes; `Reference` walks it, as torchvision's parts have the same names.
    reference = Reference(ROUNDS[norm], layers=(1, 1, 1, 1))
    network.load_state_dict(reference.network.state_dict())
    network.relu = network.act1
    reference.network = network.eval()
    source = {"bn": None, "gn": "timm"}[norm]
    path = saved({"arch": "resnet50", "state_dict": reference.state()}, tmp_path)
    conversion = assert_same_features(reference, path, norm.upper(), tmp_path, source=source)
    assert conversion.pretraining.norm == norm.upper() and not conversion.pretraining.ws


def test_timm_as_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    reference = Reference(nn.BatchNorm2d, layers=(1, 1, 1, 1))
    path = tmp_path / "model.safetensors"
    safetensors.save_file(reference.state(), path)
    assert_same_features(reference, path, "BN", tmp_path)


@pytest.mark.parametrize("groups", [1, 32])
def test_mmdetection_with_gn_and_ws(tmp_path, groups):
    reference = Reference(
        GN, WSConv, groups=groups, width=32 if groups == 1 else 4, rename=norms_named("gn")
    )
    path = saved({"state_dict": reference.state()}, tmp_path, "resnet50_gn_ws-15beedd8.pth")
    conversion = assert_same_features(reference, path, "GN", tmp_path)
    made = conversion.pretraining
    assert (made.source, made.norm, made.ws, made.ws_eps_mode) == ("mmdet", "GN", True, "outside")


def test_a_detector_of_mmdetection(tmp_path):
    def rename(name):
        return "roi_head.bbox_head.fc" + name if name[:3] == "fc." else f"backbone.{name}"

    reference = Reference(GN, WSConv, rename=lambda name: rename(norms_named("gn")(name)))
    state = reference.state() | {"neck.lateral_convs.0.conv.weight": torch.ones(8, 8, 1, 1)}
    config = (
        "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\n"
        "conv_cfg = dict(type='ConvWS')\nmodel = dict(backbone=dict(style='pytorch'))\n"
        "bbox_coder = dict(target_means=[0., 0., 0., 0.], target_stds=[0.1, 0.1, 0.2, 0.2])"
    )
    path = saved({"meta": {"config": config, "epoch": 12}, "state_dict": state}, tmp_path)
    conversion = assert_same_features(reference, path, "GN", tmp_path)
    made = conversion.pretraining
    assert made.ws and not made.stride_in_1x1
    assert made.input_format == "BGR" and made.pixel_mean == (103.53, 116.28, 123.675)
    assert made.pixel_std == (1.0, 1.0, 1.0)
    assert "head: only the backbone" in conversion.ignored["neck.lateral_convs.0.conv.weight"]


def test_mmdetection_with_gn_and_the_stride_in_the_1x1(tmp_path):
    reference = Reference(GN, rename=norms_named("gn"), layers=(1, 1, 1, 1))
    for stage in (2, 3, 4):
        block = getattr(reference.network, f"layer{stage}")[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    path = saved({"state_dict": reference.state()}, tmp_path)
    assert_same_features(reference, path, "GN", tmp_path, ws=False, stride_in_1x1=True)


def test_the_ws_release(tmp_path):
    reference = Reference(GN, WSConv, rename=lambda name: f"module.{name}")
    # As its script saves: the older file format, behind DataParallel.
    path = tmp_path / "checkpoint.pth.tar"
    content = {"epoch": 90, "state_dict": reference.state(), "acc": 76.2, "best_acc": 76.3}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    conversion = assert_same_features(reference, path, "GN", tmp_path)
    assert conversion.pretraining.source == "ws" and conversion.pretraining.ws


@pytest.mark.parametrize("inner", ["pbn", "bn"])
def test_the_bcn_release(tmp_path, inner):
    reference = Reference(
        partial(ReleasedBCN, inner=inner), WSConvInside, rename=lambda name: f"module.{name}"
    )
    state = reference.state()
    if inner == "bn":
        owners = {key.rpartition(".")[0] for key in state if key.endswith(".running_mean")}
        state |= {f"{owner}.estbn_moving_speed": torch.zeros(1) for owner in owners}
    path = saved({"state_dict": state, "best_acc": 77.0}, tmp_path)
    conversion = assert_same_features(reference, path, BatchChannelNorm2d, tmp_path)
    made = conversion.pretraining
    assert (made.source, made.ws, made.ws_eps_mode) == ("bcn", True, "inside")
    assert made.norm == {"pbn": "BatchBCN", "bn": "BCN"}[inner]


def test_bcn_with_the_other_eps_mode_is_another_network(tmp_path):
    # The comparison above can tell the two conventions apart.
    reference = Reference(ReleasedBCN, WSConvInside, layers=(1, 1, 1, 1))
    path = saved(reference.state(), tmp_path)
    reference.network.apply(
        lambda m: setattr(m, "__class__", WSConv) if isinstance(m, WSConvInside) else None
    )
    with pytest.raises(AssertionError, match="res2: "):
        assert_same_features(reference, path, BatchChannelNorm2d, tmp_path)


@pytest.mark.parametrize("using_bn", [True, False])
def test_switchable_normalization(tmp_path, using_bn):
    reference = Reference(partial(ReleasedSN, using_bn=using_bn), rename=norms_named("sn"))
    content = {"epoch": 120, "model": "resnetv1sn50", "state_dict": reference.state()}
    content["optimizer"] = {"state": {}, "param_groups": []}
    path = saved(content, tmp_path, "ResNet50v1+SN(8,32)-77.49.pth")
    statistics = ("in", "ln", "bn") if using_bn else ("in", "ln")
    norm = partial(SwitchNorm2d, statistics=statistics, unbiased=True)
    conversion = assert_same_features(reference, path, norm, tmp_path)
    made = conversion.pretraining
    assert (made.source, made.unbiased, made.minibatch) == ("sn", True, 32)
    assert made.norm == ("SN" if using_bn else "SN_IN_LN")
    assert conversion.ignored["model"] == "not a tensor"


def test_biased_sn_is_another_network(tmp_path):
    reference = Reference(ReleasedSN, rename=norms_named("sn"), layers=(1, 1, 1, 1))
    path = saved(reference.state(), tmp_path)
    with pytest.raises(AssertionError, match=r"res[2-5]: "):
        assert_same_features(reference, path, SwitchNorm2d, tmp_path)


def as_sums(state, count, mean="running_mean", var="running_var"):
    """The state with its statistics as the batch-average mode sums them."""
    summed = dict(state)
    for key in [key for key in state if key.endswith("running_mean")]:
        average, variance = state[key], state[key.replace("mean", "var")]
        summed[key.replace("running_mean", mean)] = average * count
        summed[key.replace("running_mean", var)] = (average**2 + variance) * count
    return summed


def test_sums_of_the_batch_average_are_divided(tmp_path):
    reference = Reference(ReleasedSN, rename=norms_named("sn"), layers=(1, 1, 1, 1))
    path = saved(as_sums(reference.state(), 200), tmp_path)
    norm = partial(SwitchNorm2d, unbiased=True)
    assert_same_features(reference, path, norm, tmp_path, batch_average_count=200)
    with pytest.raises(ValueError, match=r"stem.* running_var is up to .*--batch-average-count"):
        convert_weights(path, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"batch_average_count \(3\) give negative variances"):
        convert_weights(path, tmp_path / "x.pth", batch_average_count=3)
    with pytest.raises(ValueError, match=r"batch_average_count \(0\) must be at least 1"):
        convert_weights(path, tmp_path / "x.pth", batch_average_count=0)
    assert not (tmp_path / "x.pth").exists()


def test_a_count_for_norms_without_batch_statistics_is_refused(tmp_path):
    path = saved(Reference(nn.BatchNorm2d, layers=(1, 1, 1, 1)).state(), tmp_path)
    with pytest.raises(ValueError, match="no norm is an SN with batch statistics"):
        convert_weights(path, tmp_path / "x.pth", batch_average_count=200)


def test_statistics_that_were_never_filled_are_refused(tmp_path):
    state = Reference(ReleasedSN, rename=norms_named("sn"), layers=(1, 1, 1, 1)).state()
    state["layer2.0.sn1.running_var"].zero_()
    path = saved(state, tmp_path)
    with pytest.raises(ValueError, match=r"res3\.0\.conv1\.norm\.running_var is all 0"):
        convert_weights(path, tmp_path / "x.pth")


@pytest.mark.parametrize("prefix", ["Conv_Body.conv_body.", "Conv_Body."])
def test_switchnorm_detection(tmp_path, prefix):
    reference = Reference(ReleasedSN, rename=detectron_pytorch(prefix))
    state = reference.state()
    state["RPN.RPN_conv.weight"] = torch.ones(4, 4, 3, 3)
    if prefix == "Conv_Body.":  # a C4 model: the last stage is the head
        state = {key.replace("Conv_Body.res5", "Box_Head.res5"): state[key] for key in state}
    path = saved({"model": state}, tmp_path, "resnet-sn-50-(8,2).pth")
    norm = partial(SwitchNorm2d, unbiased=True)
    conversion = assert_same_features(reference, path, norm, tmp_path)
    assert (conversion.pretraining.source, conversion.pretraining.minibatch) == ("sn_detection", 2)
    assert "only the backbone" in conversion.ignored["RPN.RPN_conv.weight"]


def test_switchnorm_detections_own_accumulators(tmp_path):
    reference = Reference(ReleasedSN, rename=detectron_pytorch("Conv_Body."), layers=(1, 1, 1, 1))
    state = reference.state()
    norm = partial(SwitchNorm2d, unbiased=True)
    both = as_sums(state, 50, "batch_mean", "batch_var")
    # Averages beside leftover sums: the averages are the weights' own.
    conversion = assert_same_features(reference, saved({"model": both}, tmp_path), norm, tmp_path)
    assert "Conv_Body.res1.sn1.batch_mean" in conversion.ignored
    # Nothing but sums.
    for key in both:
        if ".running_" in key:
            both[key] = torch.zeros_like(both[key])
    path = saved({"model": both}, tmp_path)
    with pytest.raises(ValueError, match=r"batch_mean holds sums.*--batch-average-count"):
        convert_weights(path, tmp_path / "x.pth")
    conversion = assert_same_features(reference, path, norm, tmp_path, batch_average_count=50)
    assert conversion.mapped["Conv_Body.res1.sn1.batch_mean"] == "stem.conv1.norm.running_mean"
    assert "Conv_Body.res1.sn1.running_mean" in conversion.ignored


def test_switchnorm_detections_blobs_in_a_pickle(tmp_path):
    reference = Reference(ReleasedSN)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(blobs(reference.state()), protocol=2))
    conversion = assert_same_features(
        reference, path, partial(SwitchNorm2d, unbiased=True), tmp_path
    )
    assert conversion.pretraining.source == "sn_detection"
    assert conversion.ignored["res2_0_branch1_b"] == "a bias of zero before a norm"


def test_a_frozen_affine_bn_of_detectron_is_refused(tmp_path):
    rename = detectron_pytorch("Conv_Body.", "bn")
    state = Reference(GN, rename=rename, layers=(1, 1, 1, 1)).state()
    path = saved({"model": state}, tmp_path)
    with pytest.raises(ValueError, match=r"frozen BNs, folded .* detectron2://"):
        convert_weights(path, tmp_path / "x.pth")


def ssn_reference(fixed):
    reference = Reference(ReleasedSSN, rename=norms_named("sn"), ceil_pool=True)
    norms = [m for m in reference.network.modules() if isinstance(m, ReleasedSSN)]
    with torch.no_grad():
        for i, norm in enumerate(norms):
            norm.radius.fill_(0.9 if fixed else 0.0)
            for which, choice in (("mean", i % 3), ("var", i // 3 % 3)):
                if fixed:
                    getattr(norm, f"{which}_fixed").fill_(1)
                    getattr(norm, f"{which}_weight").copy_(torch.eye(3)[choice])
    return reference


@pytest.mark.parametrize("fixed", [True, False])
def test_sparse_switchable_normalization(tmp_path, fixed):
    reference = ssn_reference(fixed)
    content = {"model": "resnetv1ssn50", "state_dict": reference.state()}
    path = saved(content, tmp_path, "ssn_8x2_75.848.pth")
    conversion = assert_same_features(
        reference, path, partial(SparseSwitchNorm2d, unbiased=True), tmp_path
    )
    made = conversion.pretraining
    assert (made.source, made.norm, made.minibatch) == ("ssn", "SSN", 2)
    assert made.stem_pool == "ceil" and made.unbiased
    state = conversion.state
    assert state["stem.conv1.norm.mean_fixed"].tolist() == [0 if fixed else -1]
    assert state["stem.conv1.norm.radius"].item() == pytest.approx(0.816497 if fixed else 0)


def test_ssns_stem_pools_otherwise(tmp_path):
    reference = ssn_reference(fixed=True)
    path = saved(reference.state(), tmp_path)
    reference.network.maxpool = nn.MaxPool2d(3, 2, padding=1)
    with pytest.raises(AssertionError, match="res2: "):
        assert_same_features(reference, path, partial(SparseSwitchNorm2d, unbiased=True), tmp_path)


def test_an_ssn_ratio_that_is_fixed_and_not_one_hot_is_refused(tmp_path):
    state = ssn_reference(fixed=True).state()
    state["layer1.0.sn2.var_weight"].copy_(torch.tensor([0.5, 0.5, 0.0]))
    path = saved(state, tmp_path)
    with pytest.raises(ValueError, match=r"res2\.0\.conv2\.norm\.var_fixed is set.*not one-hot"):
        convert_weights(path, tmp_path / "x.pth")


# --- what becomes of every key ---------------------------------------------------------------


@pytest.fixture(scope="module")
def small_bn():
    return Reference(nn.BatchNorm2d, layers=(1, 1, 1, 1)).state()


def test_every_key_is_reported_once(small_bn):
    conversion = convert_state(*unwrap({"state_dict": small_bn, "epoch": 3}))
    assert set(conversion.mapped) | set(conversion.ignored) == {*small_bn, "epoch"}
    assert not set(conversion.mapped) & set(conversion.ignored)
    assert set(conversion.mapped.values()) == set(conversion.state)
    report = conversion.report()
    for key in small_bn:
        lines = re.findall(rf"^(?:mapped|ignored) +{re.escape(key)}(?: ->|:)", report, re.M)
        assert len(lines) == 1
    assert "ignored  fc.weight: the classifier of ImageNet" in report


def test_a_key_without_a_place_is_an_error(small_bn):
    state = small_bn | {"layer1.0.se.fc1.weight": torch.ones(4, 4, 1, 1)}
    with pytest.raises(
        ValueError, match=r"1 of \d+ keys have no place.*\n  layer1.0.se.fc1.weight"
    ):
        convert_state(state)


def test_a_deep_stem_is_an_error(small_bn):
    state = {k.replace("conv1.weight", "conv1.0.weight", 1) if k == "conv1.weight" else k: v
             for k, v in small_bn.items()}  # fmt: skip
    with pytest.raises(ValueError, match=r"7x7 stem.*\n  conv1.0.weight"):
        convert_state(state)


def test_a_pre_activation_network_is_an_error():
    state = Reference(ReleasedSN, rename=norms_named("sn"), layers=(1, 1, 1, 1)).state()
    state["sn_out.weight"] = torch.ones(1, 2048, 1, 1)
    with pytest.raises(ValueError, match=r"post-activation.*\n  sn_out.weight \(1, 2048, 1, 1\)"):
        convert_state(state)


@pytest.mark.parametrize(
    "missing", ["conv1.weight", "layer2.0.conv2.weight", "layer4.0.downsample.0.weight"]
)
def test_a_missing_convolution_is_an_error(small_bn, missing):
    state = {key: value for key, value in small_bn.items() if key != missing}
    with pytest.raises(ValueError, match="are missing, such as"):
        convert_state(state)


def test_a_missing_shortcut_is_an_error(small_bn):
    state = {key: value for key, value in small_bn.items() if "layer3.0.downsample" not in key}
    with pytest.raises(ValueError, match=r"res4\.0\.shortcut\.weight, res4\.0\.shortcut\.norm"):
        convert_state(state)


def test_a_missing_field_of_a_norm_is_an_error(small_bn):
    state = {key: value for key, value in small_bn.items() if key != "layer1.0.bn2.running_var"}
    with pytest.raises(ValueError, match=r"res2\.0\.conv2\.norm has bias, running_mean, weight"):
        convert_state(state)


def test_a_norm_of_another_width_is_an_error(small_bn):
    state = small_bn | {f"layer1.0.bn2.{f}": torch.ones(3)
                        for f in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    with pytest.raises(ValueError, match=r"res2\.0\.conv2\.norm has 3 channels, its conv.* has 32"):
        convert_state(state)


def test_a_missing_stage_is_reported(small_bn):
    state = {key: value for key, value in small_bn.items() if not key.startswith("layer4")}
    conversion = convert_state(state)
    assert conversion.missing == ["res5"] and conversion.pretraining.blocks == (1, 1, 1)
    assert "missing  res5: not in the file" in conversion.report()


def test_an_unknown_file_shows_its_first_keys(tmp_path):
    state = {f"blocks.{i}.attn.qkv.weight": torch.ones(2, 2) for i in range(20)}
    with pytest.raises(ValueError, match=r"published\.pth: no known source") as error:
        convert_weights(saved(state, tmp_path), tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()
    message = str(error.value)
    assert "of 20 keys" in message and "torchvision, timm" in message
    assert "blocks.0.attn.qkv.weight" in message and "blocks.9.attn" in message
    assert "blocks.10.attn" not in message


def test_gn_under_torchvisions_names_needs_a_word():
    state = Reference(GN, layers=(1, 1, 1, 1)).state()
    with pytest.raises(ValueError, match=r"--source ws .*--source timm"):
        convert_state(state)
    assert convert_state(state, source="ws").pretraining.ws
    assert not convert_state(state, source="timm").pretraining.ws


def test_gn_of_mmdetection_needs_a_word_about_ws():
    state = Reference(GN, rename=norms_named("gn"), layers=(1, 1, 1, 1)).state()
    with pytest.raises(ValueError, match="say --ws or --no-ws"):
        convert_state(state)
    assert not convert_state(state, ws=False).pretraining.ws


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "caffe"}, "unknown source 'caffe'; known: torchvision, timm"),
        ({"input_format": "HSV"}, "input_format .'HSV'. must be 'RGB' or 'BGR'"),
        ({"minibatch": 0}, r"minibatch \(0\) must be at least 1"),
        ({"colour": 1}, "unknown option 'colour'; known: ws, minibatch"),
    ],
)
def test_wrong_options_are_named(small_bn, options, message):
    with pytest.raises(ValueError, match=message):
        convert_state(small_bn, **options)


def test_the_output_must_end_in_pth(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.pth"):
        convert_weights(tmp_path / "x.pth", tmp_path / "x.pkl")


# --- the file --------------------------------------------------------------------------------


def test_the_file_loads_with_weights_only_and_says_what_it_is(small_bn, tmp_path):
    path = saved(small_bn, tmp_path, "resnet50-0676ba61.pth")
    convert_weights(path, tmp_path / "new" / "x.pth", minibatch=32)
    content = torch.load(tmp_path / "new" / "x.pth", weights_only=True)
    assert content["matching_heuristics"] is True and content["__author__"] == "wsbcn_d2"
    recorded = content["pretraining"]
    assert recorded["source"] == "torchvision" and recorded["file"] == "resnet50-0676ba61.pth"
    assert recorded["norm"] == "BN" and recorded["ws"] is False and recorded["minibatch"] == 32
    assert content["norms"]["norms"]["res3.0.shortcut.norm"] == "BN"
    assert content["norms"]["convs"]["stem.conv1"] is False
    assert all(v.dtype == torch.float32 for v in content["model"].values())


def test_a_failed_write_leaves_the_old_file(small_bn, tmp_path, monkeypatch):
    path, output = saved(small_bn, tmp_path), tmp_path / "x.pth"
    output.write_bytes(b"old")

    def fill_the_disk(content, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="no space"):
        convert_weights(path, output)
    assert output.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["published.pth", "x.pth"]


def test_registered_names_of_norms_load_too(tmp_path):
    wsbcn_d2.register_norms()
    try:
        reference = Reference(ReleasedBCN, WSConvInside, layers=(1, 1, 1, 1))
        path = saved(reference.state(), tmp_path)
        norm = partial(get_norm, "SyncBCN")
        assert_same_features(reference, path, norm, tmp_path)
    finally:
        wsbcn_d2.unregister_norms()
