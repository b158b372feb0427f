"""A backbone's training step: captured in a CUDA graph, and over NCCL in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.config import instantiate
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.gpu.device import DEVICE
from wsbcn_d2 import get_config
from wsbcn_d2.modeling import use_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on one sample")

SIZE = (320, 480) if DEVICE.type == "cuda" else (32, 48)
NORMS = [("GN", True), ("SN", False), ("SN_IN_LN", True), ("SSN", False), ("BCN", True)]


def backbone(norm: str, standardize: bool) -> nn.Module:
    """The quick recipe's ResNet-18-FPN, half as wide as usual."""
    model = get_config("quick/mask_rcnn_r18_fpn_gn").model
    use_norm(model, norm, standardize=standardize)
    torch.manual_seed(0)
    return instantiate(model.backbone).to(DEVICE)


def step(model: nn.Module, x: Tensor) -> Tensor:
    """Forward and backward; the loss."""
    loss = torch.stack([feature.float().square().mean() for feature in model(x).values()]).sum()
    loss.backward()
    return loss.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Equal but for the order of convolutions' sums, which cuDNN may choose anew.

    In units of the layer's largest gradient, as that of a control is a difference of large sums,
    and of no less than a thousandth of the model's, as what a norm cancels is rounding alone.
    """
    assert ours.keys() == theirs.keys()
    least = 1e-3 * max(float(grad.norm()) for grad in theirs.values())
    scales: dict[str, float] = {}
    for name, grad in theirs.items():
        layer = name.rpartition(".")[0]
        scales[layer] = max(scales.get(layer, least), float(grad.norm()))
    for name, grad in ours.items():
        gap = float((grad - theirs[name]).norm())
        assert gap <= 1e-3 * scales[name.rpartition(".")[0]], name


@pytest.mark.parametrize(("norm", "standardize"), NORMS)
def test_a_captured_step_equals_an_eager_one(norm: str, standardize: bool) -> None:
    model = backbone(norm, standardize)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (torch.randn(1, 3, *SIZE, device=DEVICE) for _ in range(2))
    static = first.clone()

    def replay() -> None:
        step(model, static)

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if DEVICE.type == "cuda":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(model, static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(model, static)
        replay = graph.replay
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(start[key])
    static.copy_(second)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()
    replay()
    captured = gradients(model)
    buffers = {key: value.clone() for key, value in model.named_buffers()}

    eager = backbone(norm, standardize)
    eager.load_state_dict(start)
    step(eager, second)
    assert_near(captured, gradients(eager))
    for key, value in eager.named_buffers():
        torch.testing.assert_close(buffers[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["SyncSN", "SyncBCN"])
def test_a_process_group_of_one_changes_nothing(norm: str, tmp_path: Path) -> None:
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    x = torch.randn(2, 3, *SIZE, device=DEVICE)
    alone = backbone(norm, False)
    loss = step(alone, x)
    if DEVICE.type == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        number = torch.ones(3, device=DEVICE)
        dist.all_reduce(number)
        assert number.tolist() == [1, 1, 1]
        model = backbone(norm, False)
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        torch.testing.assert_close(step(wrapped, x), loss, rtol=1e-4, atol=0)
        assert_near(gradients(model), gradients(alone))
    finally:
        dist.destroy_process_group()
