"""jit.trace, torch.export and ONNX of whole small networks in evaluation mode."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.norms.families import FAMILIES
from tests.norms.oracles import randomize, tensors
from wsbcn_d2.norms import WSConv2d

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
every_norm = pytest.mark.parametrize("family", FAMILIES)


def network(family: str) -> nn.Module:
    """WS convolution, norm, ReLU; hard SSN ratios are fixed."""
    model = nn.Sequential(WSConv2d(3, 6, 3), FAMILIES[family](6), nn.ReLU())
    randomize(model, 0)
    model(*tensors(1, (2, 3, 8, 8), dtype=torch.float32))
    return model.eval()


def inputs() -> list[Tensor]:
    """An example to trace with, and others in batch and size."""
    return tensors(2, (2, 3, 8, 9), (2, 3, 8, 9), (5, 3, 6, 11), dtype=torch.float32)


@every_norm
def test_traced_networks_follow_new_sizes(family: str) -> None:
    model, (example, *others) = network(family), inputs()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, example)
        for x in (example, *others):
            assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)


@every_norm
def test_exported_programs_follow_new_sizes(family: str) -> None:
    model, (example, *others) = network(family), inputs()
    dim = torch.export.Dim
    shapes = ({0: dim("n", min=1), 2: dim("h", min=4), 3: dim("w", min=4)},)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
    for x in (example, *others):
        assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("family", ["sn_grouped", "ssn_hard", "ssn", "bcn"])
def test_onnx_graphs_compute_the_same(family: str, exporter: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    if exporter == "dynamo":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, (example, *others) = network(family), inputs()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(
                model,
                (example,),
                str(path),
                dynamo=False,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}},
                opset_version=18,
            )
        else:
            dims = {
                0: torch.export.Dim("n", min=1),
                2: torch.export.Dim("h", min=4),
                3: torch.export.Dim("w", min=4),
            }
            torch.onnx.export(
                model,
                (example,),
                str(path),
                dynamo=True,
                input_names=["x"],
                output_names=["y"],
                dynamic_shapes=(dims,),
                verbose=False,
            )
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    session = __import__("onnx.reference", fromlist=["ReferenceEvaluator"]).ReferenceEvaluator(
        graph
    )
    for x in (example, *others):
        (y,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            assert_close(torch.from_numpy(y), model(x), rtol=1e-3, atol=1e-4)
