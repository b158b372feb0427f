"""fvcore's counters on every norm, and on standardized convolutions."""

from __future__ import annotations

import pytest
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, parameter_count
from torch import nn

from tests.norms.families import FAMILIES
from wsbcn_d2.norms import WSConv2d

pytestmark = pytest.mark.filterwarnings("ignore")
N, C_IN, C, H, W, K = 2, 3, 6, 8, 9, 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conv", [nn.Conv2d, WSConv2d])
def test_counts_are_those_of_the_formula(family, conv):
    model = nn.Sequential(conv(C_IN, C, K, padding=1), FAMILIES[family](C), nn.ReLU()).eval()
    x = torch.zeros(N, C_IN, H, W)
    flops = FlopCountAnalysis(model, x).unsupported_ops_warnings(False)
    # fvcore counts a multiplication with its addition as one.
    assert flops.by_operator()["conv"] == N * C * H * W * C_IN * K * K
    activations = ActivationCountAnalysis(model, x).unsupported_ops_warnings(False)
    assert activations.total() == N * C * H * W  # outputs of convolutions
    expected = C * C_IN * K * K + C + sum(p.numel() for p in model[1].parameters())
    assert parameter_count(model)[""] == expected
