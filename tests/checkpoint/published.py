"""Networks as the published weights were trained in: torchvision's ResNet with other layers.

The layers are written from the published formulas, with the published parameters' names and shapes,
and without this package's code. Each `Reference` knows the state dict that its project would save,
and the features that it computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

STAGES = ("res2", "res3", "res4", "res5")


class WSConv(nn.Conv2d):
    """WS as released: the deviation has divisor K - 1, and eps stands outside of the root."""

    def standardize(self, centered: Tensor) -> Tensor:
        std = centered.flatten(1).std(1).view(-1, 1, 1, 1)
        return centered / (std + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        centered = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, self.standardize(centered), self.bias, self.stride, self.padding,
                        self.dilation, self.groups)  # fmt: skip


class WSConvInside(WSConv):
    """WS as in the BCN release: eps under the root."""

    def standardize(self, centered: Tensor) -> Tensor:
        return centered / (centered.flatten(1).var(1) + 1e-5).sqrt().view(-1, 1, 1, 1)


class ReleasedBCN(nn.Module):
    """BCN in evaluation: a batch norm named ``pbn`` (or ``bn``), then normalized channel groups."""

    def __init__(self, channels: int, inner: str = "pbn", groups: int = 32) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(1, groups, 1))
        self.bias = nn.Parameter(torch.zeros(1, groups, 1))
        self.inner = inner
        setattr(self, inner, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        z = getattr(self, self.inner)(x).reshape(len(x), self.groups, -1)
        var, mean = torch.var_mean(z, 2, correction=0, keepdim=True)
        return (self.weight * (z - mean) / (var + 1e-5).sqrt() + self.bias).reshape(x.shape)


class ReleasedSN(nn.Module):
    """SN in evaluation, unbiased IN variances, LN's by E[x^2] - mean^2, as released."""

    def __init__(self, channels: int, using_bn: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.mean_weight = nn.Parameter(torch.ones(3 if using_bn else 2))
        self.var_weight = nn.Parameter(torch.ones(3 if using_bn else 2))
        if using_bn:
            self.register_buffer("running_mean", torch.zeros(1, channels, 1))
            self.register_buffer("running_var", torch.ones(1, channels, 1))

    def ratio(self, which: str) -> Tensor:
        return getattr(self, f"{which}_weight").softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        mean_in, var_in = flat.mean(2, keepdim=True), flat.var(2, keepdim=True)
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = (var_in + mean_in**2).mean(1, keepdim=True) - mean_ln**2
        means, variances = [mean_in, mean_ln], [var_in, var_ln]
        if hasattr(self, "running_mean"):
            means.append(self.running_mean)
            variances.append(self.running_var)
        mean = sum(p * m for p, m in zip(self.ratio("mean"), means, strict=True))
        var = sum(q * v for q, v in zip(self.ratio("var"), variances, strict=True))
        y = ((flat - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        return y * self.weight + self.bias


class ReleasedSSN(ReleasedSN):
    """SSN in evaluation: a fixed ratio is the control parameter itself, others are sparsemax."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("mean_fixed", torch.zeros(1, dtype=torch.long))
        self.register_buffer("var_fixed", torch.zeros(1, dtype=torch.long))
        self.register_buffer("radius", torch.zeros(1))

    def ratio(self, which: str) -> Tensor:
        control = getattr(self, f"{which}_weight")
        if getattr(self, f"{which}_fixed"):
            return control
        # sparsemax by bisection on its threshold
        low, high = control.min() - 1, control.max()
        for _ in range(100):
            middle = (low + high) / 2
            if (control - middle).clamp(min=0).sum() > 1:
                low = middle
            else:
                high = middle
        return (control - high).clamp(min=0)


def randomize(model: nn.Module, seed: int) -> None:
    """Parameters that no default has, in the ranges that a trained network's have."""
    generator = torch.Generator().manual_seed(seed)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            field = name.rpartition(".")[2]
            if tensor.dim() == 4 and min(tensor.shape[:2]) > 1:  # a convolution
                # Not centred, and filters of unlike size: WS shows, and its eps too.
                scale = (tensor[0].numel() ** -0.5) * 10 ** -(random(tensor[:, :1, :1, :1]).abs())
                tensor.copy_(scale * (random(tensor) + 0.3))
            elif field in ("mean_weight", "var_weight"):
                tensor.copy_(random(tensor))
            elif field == "weight":
                tensor.copy_(1 + 0.3 * random(tensor))
            elif field == "bias":
                tensor.copy_(0.3 * random(tensor))


@torch.no_grad()
def calibrate(network: nn.Module, seed: int) -> None:
    """Running statistics of smooth noise, a little off, as those of a training set are."""

    def set_statistics(module: nn.Module, inputs: tuple[Tensor]) -> None:
        var, mean = torch.var_mean(inputs[0], (0, 2, 3))
        module.running_mean.copy_((mean + 0.1 * var.sqrt()).view_as(module.running_mean))
        module.running_var.copy_((1.3 * var).view_as(module.running_var))

    owners = [m for m in network.modules() if hasattr(m, "running_mean")]
    handles = [module.register_forward_pre_hook(set_statistics) for module in owners]
    # Neighbouring pixels are alike, as in photographs.
    coarse = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    network.eval()(F.interpolate(coarse, size=64, mode="bilinear"))
    for handle in handles:
        handle.remove()


class Reference:
    """A published network: `network` computes, `state` is what the project saves.

    Narrow, and with few blocks, to be quick.

    Args:
        norm: of a number of channels.
        conv: the class of every convolution.
        block, layers, groups, width: as torchvision's ResNet takes them.
        rename: the project's name for one of torchvision's.
        ceil_pool: whether the stem's pooling rounds up and does not pad.
    """

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        conv: type[nn.Conv2d] = nn.Conv2d,
        *,
        block: Any = Bottleneck,
        layers: tuple[int, ...] = (2, 1, 1, 1),
        groups: int = 1,
        width: int = 32,
        rename: Callable[[str], str] = lambda name: name,
        ceil_pool: bool = False,
        seed: int = 0,
    ) -> None:
        self.network = ResNet(
            block, list(layers), 7, groups=groups, width_per_group=width, norm_layer=norm
        )
        for module in self.network.modules():
            if type(module) is nn.Conv2d:
                module.__class__ = conv
        if ceil_pool:
            self.network.maxpool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
        randomize(self.network, seed)
        calibrate(self.network, seed)
        self.rename = rename
        self.layers, self.groups, self.width, self.block = layers, groups, width, block

    def state(self) -> dict[str, Tensor]:
        return {self.rename(k): v.clone() for k, v in self.network.state_dict().items()}

    @torch.no_grad()
    def features(self, x: Tensor) -> dict[str, Tensor]:
        """In float64, after each stage."""
        net = self.network.double()
        x = net.maxpool(net.relu(net.bn1(net.conv1(x.double()))))
        features = {}
        for name, stage in zip(STAGES, (net.layer1, net.layer2, net.layer3, net.layer4),
                               strict=True):  # fmt: skip
            features[name] = x = stage(x)
        net.float()
        return features


def norms_named(attribute: str) -> Callable[[str], str]:
    """``bn1`` of torchvision under the name that a project gives it: gn1, sn1."""
    return lambda name: re.sub(r"\bbn(\d)", attribute + r"\1", name)


def detectron_pytorch(prefix: str, attribute: str = "sn") -> Callable[[str], str]:
    """Detectron.pytorch's names: res1 is the stem, res2 the first stage."""

    def rename(name: str) -> str:
        name = norms_named(attribute)(name)
        if name.startswith("fc."):
            return f"{prefix}classifier.{name[3:]}"
        name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
        return prefix + (name if name.startswith("res") else f"res1.{name}")

    return rename


BLOB_SUFFIXES = {
    "weight": "s",
    "bias": "b",
    "mean_weight": "mean_weight",
    "var_weight": "var_weight",
    "running_mean": "rm",
    "running_var": "riv",
}


def blobs(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict of an SN network of torchvision as Detectron's blobs: arrays, by its names."""
    result: dict[str, Any] = {}
    for name, tensor in state.items():
        owner, _, field = name.rpartition(".")
        parts = owner.split(".")
        if parts[0] == "fc":
            key = "pred_w" if field == "weight" else "pred_b"
        else:
            stem = parts[0] in ("conv1", "bn1")
            base = "" if stem else f"res{int(parts[0][5:]) + 1}_{parts[1]}_"
            last = parts[-1] if parts[-2:-1] != ["downsample"] else f"downsample.{parts[-1]}"
            branch = {"downsample.0": "branch1", "downsample.1": "branch1"}.get(last)
            if stem:
                branch = "conv1"
            elif branch is None:
                branch = f"branch2{'abc'[int(last[-1]) - 1]}"
            is_conv = last.startswith("conv") or last == "downsample.0"
            key = base + branch + ("_w" if is_conv else f"_sn_{BLOB_SUFFIXES[field]}")
            if is_conv:  # Caffe's convolutions have biases, of zero before a norm
                result[base + branch + "_b"] = torch.zeros(len(tensor)).numpy()
        result[key] = tensor.numpy()
    return {"blobs": result}
