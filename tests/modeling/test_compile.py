"""torch.compile on a whole backbone: a norm adds no graph, and changes no result."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import instantiate
from torch import Tensor, nn
from torch.testing import assert_close

from wsbcn_d2 import get_config
from wsbcn_d2.modeling import use_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on one sample")


def backbone(norm: str, standardize: bool) -> nn.Module:
    torch.manual_seed(0)
    model = use_norm(
        get_config("common/models/mask_rcnn_r18_fpn").model, norm, standardize=standardize
    )
    built: nn.Module = instantiate(model.backbone)
    return built.double().train()


def compiled_features(model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], int]:
    """The features, and how many graphs they took."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    features = torch.compile(model, backend=backend)(x)
    return features, len(graphs)


@pytest.mark.parametrize(("norm", "standardize"), [("SN", False), ("SSN", False), ("BCN", True)])
def test_a_compiled_backbone_has_no_more_graphs_than_with_gn(norm: str, standardize: bool) -> None:
    x = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    _, expected = compiled_features(backbone("GN", False), x)
    model = backbone(norm, standardize)
    eager = copy.deepcopy(model)
    features, graphs = compiled_features(model, x)
    assert graphs == expected
    assert_close(features, eager(x))
    assert_close(dict(model.named_buffers()), dict(eager.named_buffers()))


@pytest.mark.parametrize(
    ("norm", "standardize"), [("SN", True), ("SyncSN", False), ("SSN", False), ("BCN", True)]
)
def test_images_of_new_sizes_meet_a_compiled_backbone(norm: str, standardize: bool) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = backbone(norm, standardize)
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    for height, width in ((64, 96), (96, 64), (128, 160)):
        compiled(torch.rand(1, 3, height, width, dtype=torch.float64))
    assert len(graphs) == 1
