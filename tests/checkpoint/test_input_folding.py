"""Weights trained on BGR of unit deviation give the same features from RGB of ImageNet's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.checkpoint.published import Reference, norms_named
from wsbcn_d2.checkpoint import CATALOG, convert_state

BGR = {"input_format": "BGR", "pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1.0,) * 3}


@pytest.fixture(scope="module")
def state():
    def norm(channels):
        return nn.GroupNorm(2, channels)

    return Reference(norm, rename=norms_named("gn"), layers=(1, 1, 1, 1)).state()


def test_the_stem_sees_the_same(state):
    plain, folded = (
        convert_state(state, source="mmdet", ws=False, **BGR, fold_input=fold)
        for fold in (False, True)
    )
    rgb = torch.rand(2, 3, 40, 56, dtype=torch.float64) * 255
    mean = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375], dtype=torch.float64).view(3, 1, 1)

    def stem(x, weight):
        return F.conv2d(x, weight, stride=2, padding=3)  # zeros at the border, as ResNet has

    before, after = (c.state["stem.conv1.weight"].double() for c in (plain, folded))
    error = (stem((rgb - mean) / std, after) - stem((rgb - mean).flip(1), before)).abs()
    # A folded weight is rounded to float32 after each of a few operations.
    assert (error <= 2.0**-22 * stem(((rgb - mean) / std).abs(), after.abs())).all()
    for name in plain.state.keys() - {"stem.conv1.weight"}:
        assert torch.equal(plain.state[name], folded.state[name])
    assert plain.pretraining.input_format == "BGR"
    made = folded.pretraining
    assert (made.input_format, made.pixel_mean) == ("RGB", (123.675, 116.28, 103.53))
    assert made.pixel_std == (58.395, 57.12, 57.375)
    assert any("folded" in note for note in folded.notes)


def test_what_cannot_be_folded_is_refused(state):
    with pytest.raises(ValueError, match="standardized stem"):
        convert_state(state, source="mmdet", ws=True, **BGR, fold_input=True)


def test_another_mean_is_kept_in_the_order_of_rgb(state):
    other = {**BGR, "pixel_mean": (104.0, 117.0, 123.0)}
    made = convert_state(state, source="mmdet", ws=False, **other, fold_input=True)
    imagenets = convert_state(state, source="mmdet", ws=False, **BGR, fold_input=True)
    assert made.pretraining.pixel_mean == (123.0, 117.0, 104.0)
    assert made.pretraining.pixel_std == (58.395, 57.12, 57.375)
    name = "stem.conv1.weight"
    assert torch.equal(made.state[name], imagenets.state[name])


def test_weights_of_the_catalog_take_rgb():
    for name, entry in CATALOG.items():
        folded = entry.options.get("fold_input", False)
        assert (entry.options.get("input_format", "RGB") == "BGR") == folded, name
