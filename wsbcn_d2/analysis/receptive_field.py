"""The receptive field of each norm layer of a backbone, and the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .ratios import switch_layers

__all__ = ["receptive_fields"]


class _Field(NamedTuple):
    size: float  # pixels of the input
    jump: float  # pixels of the input between neighbours


def receptive_fields(backbone: nn.Module, in_channels: int = 3, size: int = 256) -> dict[str, int]:
    """Receptive fields of what reaches each SN layer of a backbone, in input pixels.

    That is the side of the square of pixels that one position depends on through convolutions,
    pooling and upsampling, over the longest path; what a norm itself brings in from the rest of the
    image or batch does not count.

    Args:
        backbone: takes images ``(N, in_channels, H, W)``, such as detectron2's ResNet or FPN. On
            torch's meta device this costs no arithmetic.
        in_channels: of its input.
        size: height and width of the image to run it on; a multiple of its strides.

    Returns:
        pixels by module name, in the order in which the layers run.
    """
    found: dict[str, int] = {}
    names = {layer: name for name, layer in switch_layers(backbone).items()}
    was_training = backbone.training
    handles: list[RemovableHandle] = []

    def note(module: nn.Module, inputs: Any) -> None:
        if module in names and (field := _field_of(inputs)) is not None:
            found.setdefault(names[module], round(field.size))

    def carry_on(module: nn.Module, inputs: Any, output: Any) -> None:
        # Norms compute in functions of their own, which no mode sees.
        field = _field_of(inputs)
        if field is not None and isinstance(output, Tensor) and _field_of(output) is None:
            output.receptive_field = field  # type: ignore[attr-defined]

    for module in backbone.modules():
        handles += [
            module.register_forward_pre_hook(note),
            module.register_forward_hook(carry_on),
        ]
    device = next(backbone.parameters()).device
    image = torch.zeros(1, in_channels, size, size, device=device)
    image.receptive_field = _Field(1, 1)  # type: ignore[attr-defined]
    try:
        with torch.no_grad(), _Trace():
            backbone.eval()(image)
    finally:
        backbone.train(was_training)
        for handle in handles:
            handle.remove()
    return found


class _Trace(TorchFunctionMode):
    """Carries receptive fields from the inputs of torch's functions to their outputs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        field = _field_of([*args, *kwargs.values()])
        output = func(*args, **kwargs)
        if field is not None and isinstance(output, Tensor):
            output.receptive_field = _through(func, args, kwargs, output, field)  # type: ignore[attr-defined]
        return output


def _field_of(values: Any) -> _Field | None:
    """The largest of the tensors in nested lists."""
    if isinstance(values, Tensor):
        return getattr(values, "receptive_field", None)
    if isinstance(values, (list, tuple)):
        return max((f for f in map(_field_of, values) if f is not None), default=None)
    return None


def _through(
    func: Callable[..., Any], args: Any, kwargs: Any, output: Tensor, field: _Field
) -> _Field:
    name = getattr(func, "__name__", "")
    options = {**dict(enumerate(args)), **kwargs}
    if name == "conv2d":
        kernel = options.get(1, kwargs.get("weight")).shape[-1]
        stride = _first(options.get(3, kwargs.get("stride", 1)))
        dilation = _first(options.get(5, kwargs.get("dilation", 1)))
    elif name in ("max_pool2d", "avg_pool2d"):
        kernel = _first(options.get(1, kwargs.get("kernel_size")))
        stride = _first(options.get(2, kwargs.get("stride")) or kernel)
        dilation = _first(options.get(4, kwargs.get("dilation", 1))) if name[0] == "m" else 1
    elif name == "interpolate":
        source = options.get(0, kwargs.get("input"))
        return _Field(field.size, field.jump * source.shape[-1] / output.shape[-1])
    else:
        return field
    return _Field(field.size + (kernel - 1) * dilation * field.jump, field.jump * stride)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)
