"""How many kernels a layer launches on a GPU, counted by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tests.gpu.device import DEVICE
from wsbcn_d2 import norms

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on one sample")

# Few rows: split among programs, and one kernel more puts the parts together. Many samples: the
# batch is pooled by a kernel of its own, not by each program anew.
SHAPES = [(1, 64, 200, 304), (512, 256, 14, 14)]
if DEVICE.type == "cpu":
    SHAPES = [(1, 32, 8, 8), (8, 32, 2, 2)]
EXTRA = ("_combine_kernel", "_pool_kernel")
# Sparsestmax of the controls is torch's operators, once a step.
PLAIN = ("GN", "SSN")
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "GN": lambda c: nn.GroupNorm(32, c),
    "SN": norms.SwitchNorm2d,
    "SN_IN_LN": lambda c: norms.SwitchNorm2d(c, statistics=("in", "ln")),
    "SSN": norms.SparseSwitchNorm2d,
    "BCN": norms.BatchChannelNorm2d,
}


def launched(function: Callable[[], object]) -> list[str]:
    """Names of the kernels, copies and fills that ``function`` puts on the GPU.

    On the CPU, of the operators that it calls: only to see that counting works.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if DEVICE.type == "cuda" else None
    return [
        event.name
        for event in seen.events()
        if kind is None or event.device_type == kind
        if "Synchronize" not in event.name
    ]


def passes(layer: nn.Module, x: Tensor) -> tuple[list[str], list[str]]:
    """What a training forward and its backward launch, after a first one has compiled them."""
    dy = torch.randn_like(x)
    layer(x).backward(dy)
    kept: list[Tensor] = []
    forward = launched(lambda: kept.append(layer(x)))
    for tensor in (x, *layer.parameters()):
        tensor.grad = None  # nothing is then added to
    return forward, launched(lambda: kept[0].backward(dy))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_norms_launch_few_kernels(
    name: str,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    record_property: Callable[[str, object], None],
) -> None:
    for shape in SHAPES:
        layer = LAYERS[name](shape[1]).to(DEVICE)
        if name == "GN":  # torch's takes no parameters of another type
            layer.to(dtype)
        x = torch.randn(shape, device=DEVICE, dtype=dtype)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        forward, backward = passes(layer, x)
        case = f"{name} {'x'.join(map(str, shape))} {dtype} {memory_format}"
        record_property(case, f"{len(forward)} forward, {len(backward)} backward")
        assert forward and backward
        if DEVICE.type == "cuda" and name not in PLAIN:
            assert len(forward) <= 3, (case, forward)
            assert len([kernel for kernel in forward if kernel not in EXTRA]) == 2, (case, forward)
            assert len(backward) <= 3, (case, backward)


def test_standardization_launches_one_kernel(
    record_property: Callable[[str, object], None],
) -> None:
    weight = torch.randn(64, 32, 3, 3, device=DEVICE, requires_grad=True)
    grad = torch.randn_like(weight)
    norms.standardize_weight(weight).backward(grad)
    weight.grad = None
    kept: list[Tensor] = []
    forward = launched(lambda: kept.append(norms.standardize_weight(weight)))
    backward = launched(lambda: kept[0].backward(grad))
    record_property("WS", f"{len(forward)} forward, {len(backward)} backward")
    assert forward and backward
    if DEVICE.type == "cuda":
        assert (len(forward), len(backward)) == (1, 1), (forward, backward)
