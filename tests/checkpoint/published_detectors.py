"""Two-stage detectors as other projects have them: their modules' names, their order of channels.

Written from the published formulas with torchvision's operators, without detectron2's code. One
`Detector` computes for all; `mmdetection` and `detectron_pytorch` say what a project saves of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from tests.checkpoint.published import calibrate, randomize

WIDTH, FC, CLASSES = 32, 48, 5
LAYERS, BOTTLENECK = (1, 1, 1, 1), 32
_STD = (0.1, 0.1, 0.2, 0.2)


class Block(nn.Module):
    """A convolution and, with ``norm``, what follows it: mmdetection's ConvModule."""

    def __init__(self, conv: type[nn.Conv2d], norm: Callable | None, cin: int, k: int) -> None:
        super().__init__()
        self.conv = conv(cin, WIDTH, k, padding=k // 2, bias=norm is None)
        self.norm = nn.Identity() if norm is None else norm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Detector(nn.Module):
    """Mask R-CNN with FPN on a narrow ResNet. Its modules have mmdetection's names.

    Args:
        norm: of a number of channels.
        conv: the class of convolutions that a norm follows.
        background_first: whether class 0 is the background, which then has deltas and a mask too.
        inclusive: whether the last pixel is a part of a box, and anchors are rounded.
        aligned: whether ROIAlign subtracts half a pixel.
        sampling: points that it takes a bin.
        num_convs: of the box head, before its one linear layer; 0: two linear layers.
    """

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        conv: type[nn.Conv2d] = nn.Conv2d,
        *,
        background_first: bool = False,
        inclusive: bool = False,
        aligned: bool = True,
        sampling: int = 0,
        num_convs: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.background_first, self.one = background_first, int(inclusive)
        self.aligned, self.sampling = aligned, sampling
        self.backbone = ResNet(
            Bottleneck, list(LAYERS), 1, width_per_group=BOTTLENECK, norm_layer=norm
        )
        del self.backbone.fc
        for module in self.backbone.modules():
            if type(module) is nn.Conv2d:
                module.__class__ = conv
        bins, extra = 49 * WIDTH, int(background_first)
        self.lateral_convs = nn.ModuleList(Block(conv, norm, 256 * 2**i, 1) for i in range(4))
        self.fpn_convs = nn.ModuleList(Block(conv, norm, WIDTH, 3) for _ in range(4))
        self.rpn_conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.rpn_cls, self.rpn_reg = nn.Conv2d(WIDTH, 3, 1), nn.Conv2d(WIDTH, 12, 1)
        self.shared_convs = nn.ModuleList(Block(conv, norm, WIDTH, 3) for _ in range(num_convs))
        self.shared_fcs = nn.ModuleList([nn.Linear(bins, FC)])
        if not num_convs:
            self.shared_fcs.append(nn.Linear(FC, FC))
        self.fc_cls = nn.Linear(FC, CLASSES + 1)
        self.fc_reg = nn.Linear(FC, 4 * (CLASSES + extra))
        self.mask_convs = nn.ModuleList(Block(conv, norm, WIDTH, 3) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2)
        self.conv_logits = nn.Conv2d(WIDTH, CLASSES + extra, 1)
        randomize(self, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # some classes are likely, and boxes move by some pixels
            for layer, gain in (
                (self.fc_cls, 3),
                (self.fc_reg, 1),
                *((f, 2) for f in self.shared_fcs),
            ):
                std = gain * layer.in_features**-0.5
                layer.weight.copy_(std * torch.randn(layer.weight.shape, generator=generator))
        calibrate(self, seed)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        """All of it once, for the running statistics of norms."""
        levels = self.features(x)
        rois = torch.tensor([[i, 4.0, 4.0, 40.0, 40.0] for i in range(len(x))])
        self.masks(levels, rois)
        return self.boxes(levels, rois)[0]

    def features(self, x: Tensor) -> list[Tensor]:
        """P2 to P6."""
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        stages = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            stages.append(x := stage(x))
        inner = [lateral(stage) for lateral, stage in zip(self.lateral_convs, stages, strict=True)]
        for i in (3, 2, 1):
            inner[i - 1] = inner[i - 1] + F.interpolate(inner[i], scale_factor=2, mode="nearest")
        levels = [conv(level) for conv, level in zip(self.fpn_convs, inner, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]

    def decode(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        """Boxes moved by deltas of unit deviation; the logarithm of a size is bounded."""
        width = boxes[:, 2] - boxes[:, 0] + self.one
        height = boxes[:, 3] - boxes[:, 1] + self.one
        x = boxes[:, 0] + width / 2 + deltas[:, 0] * width
        y = boxes[:, 1] + height / 2 + deltas[:, 1] * height
        limit = torch.tensor(1000 / 16, dtype=boxes.dtype).log()
        width = width * deltas[:, 2].clamp(max=limit).exp()
        height = height * deltas[:, 3].clamp(max=limit).exp()
        moved = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        return torch.stack(moved, 1) - torch.tensor([0, 0, self.one, self.one])

    def anchors(self, level: Tensor, stride: int) -> Tensor:
        """Three a position, of 8 strides' size and ratios (height / width) 0.5, 1 and 2."""
        cells = []
        for ratio in (0.5, 1.0, 2.0):
            if self.one:  # Detectron: the cell's own box is reshaped, rounded, and enlarged
                width = round((stride * stride / ratio) ** 0.5)
                height, width = 8 * round(width * ratio), 8 * width
            else:
                width, height = 8 * stride * ratio**-0.5, 8 * stride * ratio**0.5
            middle, w, h = (stride - 1) / 2 * self.one, width - self.one, height - self.one
            cells.append([middle - w / 2, middle - h / 2, middle + w / 2, middle + h / 2])
        y, x = (torch.arange(size, dtype=level.dtype) * stride for size in level.shape[2:])
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).repeat(1, 1, 2)
        return (grid[:, :, None] + torch.tensor(cells, dtype=level.dtype)).view(-1, 4)

    def rpn(self, levels: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Logits (H·W·3) and deltas (H·W·3, 4) of each level of one image."""
        outputs = []
        for level in levels:
            hidden = self.rpn_conv(level).relu()
            logits = self.rpn_cls(hidden)[0].permute(1, 2, 0).reshape(-1)
            outputs.append((logits, self.rpn_reg(hidden)[0].permute(1, 2, 0).reshape(-1, 4)))
        return outputs

    def proposals(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        boxes, scores, numbers = [], [], []
        for i, (level, (logits, deltas)) in enumerate(zip(levels, self.rpn(levels), strict=True)):
            best, order = logits.topk(min(1000, len(logits)))
            boxes.append(self.decode(self.anchors(level, 4 * 2**i)[order], deltas[order]))
            scores.append(best)
            numbers.append(torch.full_like(order, i))
        found = self.clip(torch.cat(boxes), size)
        real = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
        found, score, level = found[real], torch.cat(scores)[real], torch.cat(numbers)[real]
        return found[torchvision.ops.batched_nms(found, score, level, 0.7)[:1000]]

    def clip(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        # Detectron clips inclusive boxes a pixel earlier; not so `use_inclusive_boxes`.
        return torchvision.ops.clip_boxes_to_image(boxes, size)

    def pooled(self, levels: list[Tensor], rois: Tensor, size: int) -> Tensor:
        """Features of boxes, each from the level of its size: 112 to 224 from P3."""
        scale = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        chosen = (scale / 56 + 1e-6).log2().floor().clamp(0, 3).long()
        out = levels[0].new_zeros(len(rois), WIDTH, size, size)
        for i in range(4):
            at = chosen == i
            out[at] = torchvision.ops.roi_align(
                levels[i], rois[at], size, 1 / (4 * 2**i), self.sampling, self.aligned
            )
        return out

    def boxes(self, levels: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes and the background, in the project's order, and deltas."""
        x = self.pooled(levels, rois, 7)
        for block in self.shared_convs:
            x = block(x).relu()
        x = x.flatten(1)
        for fc in self.shared_fcs:
            x = fc(x).relu()
        return self.fc_cls(x), self.fc_reg(x)

    def masks(self, levels: list[Tensor], rois: Tensor) -> Tensor:
        """Logits of each class."""
        x = self.pooled(levels, rois, 14)
        for block in self.mask_convs:
            x = block(x).relu()
        return self.conv_logits(self.upsample(x).relu())[:, int(self.background_first) :]

    @torch.no_grad()
    def detect(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and classes of a normalized image (1, 3, H, W): at most 100."""
        size = (image.shape[2], image.shape[3])
        levels = self.features(image)
        proposals = self.proposals(levels, size)
        rois = torch.cat([proposals.new_zeros(len(proposals), 1), proposals], 1)
        logits, deltas = self.boxes(levels, rois)
        start = int(self.background_first)
        scores = logits.softmax(1)[:, start : start + CLASSES]
        deltas = deltas.view(len(deltas), -1, 4)[:, start:] * torch.tensor(_STD)
        each = [self.clip(self.decode(proposals, deltas[:, c]), size) for c in range(CLASSES)]
        row, label = (scores > 0.05).nonzero(as_tuple=True)
        boxes, score = torch.stack(each, 1)[row, label], scores[row, label]
        keep = torchvision.ops.batched_nms(boxes, score, label, 0.5)[:100]
        boxes = self.clip(boxes[keep] + torch.tensor([0, 0, self.one, self.one]), size)
        return boxes, score[keep], label[keep]


def mmdetection(detector: Detector) -> dict[str, Tensor]:
    """What mmdetection saves."""
    homes = (
        (r"(lateral_convs|fpn_convs)", r"neck.\1"),
        (r"(rpn_)", r"rpn_head.\1"),
        (r"(shared_|fc_)", r"roi_head.bbox_head.\1"),
        (r"mask_convs", r"roi_head.mask_head.convs"),
        (r"(upsample|conv_logits)", r"roi_head.mask_head.\1"),
    )
    state = {}
    for name, tensor in detector.state_dict().items():
        for start, home in homes:
            name = re.sub("^" + start, home, name)
        name = re.sub(r"^(backbone\..*)\bbn(\d)", r"\1gn\2", name)
        state[re.sub(r"(\d)\.norm\.", r"\1.gn.", name)] = tensor.float()
    return state


def detectron_pytorch(detector: Detector) -> dict[str, Tensor]:
    """What Detectron.pytorch saves, with SwitchNorm_Detection's norms."""
    modules = {
        "rpn_conv": "RPN.FPN_RPN_conv",
        "rpn_cls": "RPN.FPN_RPN_cls_score",
        "rpn_reg": "RPN.FPN_RPN_bbox_pred",
        "fc_cls": "Box_Outs.cls_score",
        "fc_reg": "Box_Outs.bbox_pred",
        "upsample": "Mask_Head.upconv",
        "conv_logits": "Mask_Outs.classify",
        "shared_fcs.0": "Box_Head.fc" if len(detector.shared_convs) else "Box_Head.fc1",
        "shared_fcs.1": "Box_Head.fc2",
        "lateral_convs.3": "Conv_Body.conv_top",
    }
    for i in range(3):
        modules[f"lateral_convs.{i}"] = f"Conv_Body.topdown_lateral_modules.{2 - i}.conv_lateral"
    modules |= {f"fpn_convs.{i}": f"Conv_Body.posthoc_modules.{3 - i}" for i in range(4)}
    state = {}
    for name, tensor in detector.state_dict().items():
        name = re.sub(r"^backbone\.(conv|bn)1\.", r"backbone.res1.\g<1>1.", name)
        name = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
        name = re.sub(r"\bbn(\d)", r"sn\1", name)
        name = name.replace("backbone.", "Conv_Body.conv_body.")
        # A Sequential of convolution and norm, and in the heads ReLU after each.
        at = {"conv": 0, "norm": 1}
        match = re.match(r"(shared_convs|mask_convs)\.(\d)\.(conv|norm)", name)
        if match:
            home = {"shared_convs": "Box_Head.convs", "mask_convs": "Mask_Head.conv_fcn"}[match[1]]
            name = f"{home}.{3 * int(match[2]) + at[match[3]]}{name[match.end() :]}"
        match = re.match(r"((?:lateral|fpn)_convs\.\d)\.(conv|norm)", name)
        if match:
            name = f"{modules[match[1]]}.{at[match[2]]}{name[match.end() :]}"
        owner, _, field = name.rpartition(".")
        state[f"{modules.get(owner, owner)}.{field}"] = tensor.float()
    return state


def detectron_blobs(detector: Detector) -> dict[str, Any]:
    """What Detectron pickles of a GN model: arrays by its own names."""
    modules = {
        "RPN.FPN_RPN_conv": "conv_rpn_fpn2",
        "RPN.FPN_RPN_cls_score": "rpn_cls_logits_fpn2",
        "RPN.FPN_RPN_bbox_pred": "rpn_bbox_pred_fpn2",
        "Box_Head.fc": "fc6",
        "Box_Outs.cls_score": "cls_score",
        "Box_Outs.bbox_pred": "bbox_pred",
        "Mask_Head.upconv": "conv5_mask",
        "Mask_Outs.classify": "mask_fcn_logits",
        "Conv_Body.conv_body.res1.conv1": "conv1",
        "Conv_Body.conv_body.res1.sn1": "conv1_gn",
        "Conv_Body.conv_top.0": "fpn_inner_res5_0_sum",
        "Conv_Body.conv_top.1": "fpn_inner_res5_0_sum_gn",
    }
    for i in range(4):
        for part, norm in enumerate(("", "_gn")):
            stage = f"res{5 - i}_0_sum"
            modules[f"Conv_Body.posthoc_modules.{i}.{part}"] = f"fpn_{stage}{norm}"
            lateral = f"Conv_Body.topdown_lateral_modules.{i - 1}.conv_lateral.{part}"
            modules[lateral] = f"fpn_inner_{stage}_lateral{norm}"
            modules[f"Box_Head.convs.{3 * i + part}"] = f"head_conv{i + 1}{norm}"
            modules[f"Mask_Head.conv_fcn.{3 * i + part}"] = f"_[mask]_fcn{i + 1}{norm}"
    for stage in range(2, 6):
        home, block = f"Conv_Body.conv_body.res{stage}.0", f"res{stage}_0_branch"
        for k, letter in enumerate("abc", 1):
            modules[f"{home}.conv{k}"] = f"{block}2{letter}"
            modules[f"{home}.sn{k}"] = f"{block}2{letter}_gn"
        modules[f"{home}.downsample.0"] = f"{block}1"
        modules[f"{home}.downsample.1"] = f"{block}1_gn"
    blobs = {}
    for name, tensor in detectron_pytorch(detector).items():
        owner, _, field = name.rpartition(".")
        scale = "s" if modules[owner].endswith("_gn") else "w"
        key = f"{modules[owner]}_{scale if field == 'weight' else 'b'}"
        blobs[key] = tensor.numpy()
        blobs[f"{key}_momentum"] = 0 * tensor.numpy()
    return {"cfg": "MODEL: {}", "blobs": blobs}
