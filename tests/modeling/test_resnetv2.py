"""BiT's backbone against timm's class."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from wsbcn_d2.checkpoint import WSBCNCheckpointer, convert_state, convert_weights, describe_norms
from wsbcn_d2.modeling import BiTConv2d, add_wsbcn_config

timm = pytest.importorskip("timm", reason="it is compared with timm's class")
STAGES = ["res2", "res3", "res4", "res5"]


@pytest.fixture(scope="module")
def published():
    """timm's ``resnetv2_50x1_bit`` with other parameters than its initial ones."""
    model = timm.create_model("resnetv2_50x1_bit", num_classes=5).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() == 4:  # filters that are not centred, and of unlike size
                size = torch.rand(len(tensor), 1, 1, 1, generator=generator)
                tensor.copy_(10 ** (-3 * size) * (noise + 0.3))
            else:
                tensor.copy_(float(name.endswith("weight")) + 0.3 * noise)
    return model


def config(**options):
    cfg = get_cfg()
    add_wsbcn_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_ws_resnetv2_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = STAGES
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.update(options)
    return cfg


def test_each_stage_has_timms_features(published, tmp_path, caplog):
    torch.save(published.state_dict(), tmp_path / "timm.pth")
    conversion = convert_weights(tmp_path / "timm.pth", tmp_path / "bit.pth")
    made = conversion.pretraining
    assert (made.source, made.blocks, made.ws_eps_mode) == ("bit", (3, 4, 6, 3), "inside")
    assert made.pixel_mean == made.pixel_std == (127.5, 127.5, 127.5)
    assert set(conversion.ignored) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
    fpn = build_backbone(config(), ShapeSpec(channels=3))
    model = torch.nn.ModuleDict({"backbone": fpn}).eval()
    with torch.no_grad():
        for parameter in fpn.bottom_up.parameters():
            parameter.fill_(float("nan"))
    WSBCNCheckpointer(model).load(str(tmp_path / "bit.pth"))
    assert "DIFFERS" not in caplog.text
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        expected = published.double().forward_intermediates(images, intermediates_only=True)[1:]
        found = fpn.double().bottom_up(images)
        pyramid = fpn(images)
    published.float()
    for stage, features in zip(STAGES, expected, strict=True):
        scale = features.abs().max()
        assert (found[stage] - features).abs().max() < 1e-5 * scale, stage
    assert [tuple(p.shape[2:]) for p in pyramid.values()] == [
        (16, 24), (8, 12), (4, 6), (2, 3), (1, 2)
    ]  # fmt: skip
    described = describe_norms(fpn)
    assert sum(described["convs"].values()) == 53 + 8 == len(described["convs"])
    assert fpn.bottom_up.res2[0].conv1.eps < 1e-7  # FPN's eps is not the backbone's


def test_the_weight_is_standardized_by_the_biased_variance():
    torch.manual_seed(0)
    conv = BiTConv2d(4, 3, 1)
    with torch.no_grad():
        conv.weight.mul_(1e-4)  # so small that eps shows
    flat = conv.weight.detach().double().flatten(1)
    var, mean = torch.var_mean(flat, 1, correction=0, keepdim=True)
    expected = (flat - mean) / (var + 1e-8).sqrt()
    assert torch.allclose(conv.standardized_weight().flatten(1).double(), expected, rtol=1e-5)


def test_wider_ones_are_configured_by_detectron2s_keys():
    widths = {"STEM_OUT_CHANNELS": 192, "RES2_OUT_CHANNELS": 768, "WIDTH_PER_GROUP": 192}
    with torch.device("meta"):
        theirs = timm.create_model("resnetv2_101x3_bit", num_classes=0)
        ours = build_backbone(config(DEPTH=101, **widths), ShapeSpec(channels=3)).bottom_up
    count = sum(p.numel() for p in theirs.parameters()) - sum(
        p.numel() for p in theirs.norm.parameters()
    )
    assert sum(p.numel() for p in ours.parameters()) == count
    with pytest.raises(ValueError, match=r"DEPTH \(34\) must be one of"):
        build_backbone(config(DEPTH=34), ShapeSpec(channels=3))


def test_a_missing_part_is_an_error(published):
    state = dict(published.state_dict())
    del state["stages.1.blocks.0.downsample.conv.weight"]
    with pytest.raises(ValueError, match=r"missing, such as res3\.0\.shortcut\.weight"):
        convert_state(state)
