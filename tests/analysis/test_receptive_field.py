"""Receptive fields against gradients: which pixels reach the middle of each layer's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsbcn_d2.analysis import switch_layers
from wsbcn_d2.analysis.receptive_field import receptive_fields
from wsbcn_d2.norms import SwitchNorm2d


class Pass(SwitchNorm2d):
    """A norm that lets its input through: what norms bring in from elsewhere does not count."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class Branches(nn.Module):
    """Strides, dilation, pooling, a shortcut, and a top-down path, as in FPN."""

    def __init__(self) -> None:
        super().__init__()
        conv = lambda *args, **kwargs: nn.Conv2d(1, 1, *args, **kwargs, bias=False)  # noqa: E731
        self.stem, self.stem_norm = conv(7, stride=2, padding=3), Pass(1)
        self.down, self.down_norm = conv(3, stride=2, padding=1), Pass(1)
        self.shortcut, self.shortcut_norm = conv(1, stride=2), Pass(1)
        self.wide, self.wide_norm = conv(3, dilation=2, padding=2), Pass(1)
        self.out, self.out_norm = conv(3, padding=1), Pass(1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem_norm(self.stem(x)), 3, 2, 1)
        y = self.down_norm(self.down(x)) + self.shortcut_norm(self.shortcut(x))
        y = self.wide_norm(self.wide(y))
        x = x + nn.functional.interpolate(y, scale_factor=2.0, mode="nearest")
        return self.out_norm(self.out(x))


def extent_of_gradient(model: nn.Module, layer: nn.Module, size: int) -> int:
    image = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(image)
    handle.remove()
    (x,) = inputs
    widest = 0
    for place in range(x.shape[-1] // 2, x.shape[-1] // 2 + 4):  # upsampled positions differ
        (grad,) = torch.autograd.grad(x[0, 0, place, place], image, retain_graph=True)
        rows = (grad[0, 0] != 0).any(1).nonzero()
        widest = max(widest, int(rows.max() - rows.min()) + 1)
    return widest


def test_they_are_the_extents_of_gradients(monkeypatch) -> None:
    torch.manual_seed(0)
    model = Branches().double()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)  # nothing cancels
    size = 512
    # The largest of a window depends on one pixel of it only; the mean on all.
    found = receptive_fields(model.float(), in_channels=1, size=size)
    pool = nn.functional.avg_pool2d
    monkeypatch.setattr(nn.functional, "max_pool2d", lambda x, k, s, p: pool(x, k, s, p))
    model.double()
    layers = switch_layers(model)
    assert list(found) == ["stem_norm", "down_norm", "shortcut_norm", "wide_norm", "out_norm"]
    for name, layer in layers.items():
        assert found[name] == extent_of_gradient(model, layer, size), name


def test_a_backbone_on_no_device_has_those_of_the_paper() -> None:
    """arXiv:1907.10473, Sec. 4.1.4, speaks of fields 49, 199, 299 and 427 of ResNet-50's layers."""
    from detectron2.config import instantiate

    from wsbcn_d2 import get_config

    with torch.device("meta"):
        backbone = instantiate(get_config("finetune/mask_rcnn_r50_fpn_sn_2x").model.backbone)
    fields = receptive_fields(backbone)
    assert len(fields) == 53 + 8 and backbone.training
    assert fields["bottom_up.stem.conv1.norm"] == 7
    assert fields["bottom_up.res5.0.conv2.norm"] == 299
    assert fields["bottom_up.res5.2.conv3.norm"] == 427
