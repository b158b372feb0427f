"""A classifier around one of detectron2's ResNets, and what the small ones for CIFAR need."""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn
from torchvision.transforms import v2

from wsbcn_d2.norms import BatchChannelNorm2d

__all__ = ["CifarStem", "ImageClassifier", "NormWithGroups"]


class ImageClassifier(nn.Module):
    """detectron2's ``ResNet`` with its linear layer, as a model that the engine trains.

    Its ``backbone`` is what a detector has there, with the same names and the same normalization of
    the input, so that a checkpoint of this model is a detector's ``train.init_checkpoint``.

    Args:
        backbone: a ``ResNet`` with ``num_classes``, and ``"linear"`` and its last stage among the
            ``out_features``.
        pixel_mean: per channel, of RGB images in 0..255; also `pixel_std`.
        pixel_std: the deviation.
        zero_gamma: start the last norm of each residual branch at 0, so that blocks are identities
            at first (``last_gamma`` of the released SN configs).
        label_smoothing: share of the target that is spread over all classes.
        mixup_alpha: of mixup's Beta distribution (arXiv:1710.09412); 0 mixes nothing.

    Raises:
        ValueError: the backbone does not give class scores.
    """

    input_format = "RGB"  # what `ClassificationMapper` gives
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: ResNet,
        *,
        pixel_mean: list[float],
        pixel_std: list[float],
        zero_gamma: bool = False,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
    ) -> None:
        super().__init__()
        if "linear" not in backbone._out_features:
            raise ValueError("backbone needs num_classes, and 'linear' among its out_features")
        self.backbone = backbone
        self.label_smoothing = label_smoothing
        self.mixup_alpha = mixup_alpha
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        if zero_gamma:
            for module in backbone.modules():
                if isinstance(module, (BasicBlock, BottleneckBlock)):
                    last = module.conv3 if isinstance(module, BottleneckBlock) else module.conv2
                    nn.init.zeros_(last.norm.weight)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Classify a batch of images of one size.

        Args:
            batched_inputs: dicts with ``image``, uint8 of shape (3, H, W), and for training
                ``label``.

        Returns:
            in training the loss, under ``"loss_cls"``; otherwise a dict for each image with
            ``scores`` of shape (num_classes,), which sum to 1.
        """
        device = self.pixel_mean.device
        images = torch.stack([x["image"] for x in batched_inputs]).to(device, non_blocking=True)
        images = (images - self.pixel_mean) / self.pixel_std
        if not self.training:
            scores = self.backbone(images)["linear"].float().softmax(dim=1)
            return [{"scores": x} for x in scores]
        labels = torch.tensor([x["label"] for x in batched_inputs], device=device)
        if self.mixup_alpha > 0:
            mixup = v2.MixUp(alpha=self.mixup_alpha, num_classes=self.backbone.num_classes)
            images, labels = mixup(images, labels)
        logits = self.backbone(images)["linear"].float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss_cls": loss}


class CifarStem(CNNBlockBase):
    """A 3x3 convolution, for images of 32 pixels: stride 1, no pooling.

    Args:
        in_channels: of the image.
        out_channels: of the first stage.
        norm: as in detectron2's ``get_norm``.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 16, norm: Any = "BN") -> None:
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            padding=1,
            bias=False,
            norm=get_norm(norm, out_channels),
        )
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv1(x))


class NormWithGroups:
    """GN or BCN of another number of groups than 32, for layers of few channels.

    Args:
        name: ``"GN"``, ``"BCN"``, ``"BatchBCN"`` or ``"SyncBCN"``.
        num_groups: divides every layer's channels.

    Raises:
        ValueError: another name.
    """

    def __init__(self, name: str, num_groups: int) -> None:
        self._statistics = {"BCN": "estimate", "BatchBCN": "batch", "SyncBCN": "sync"}.get(name)
        if name != "GN" and self._statistics is None:
            raise ValueError(f"name ({name!r}) must be 'GN', 'BCN', 'BatchBCN' or 'SyncBCN'")
        self._num_groups = num_groups

    def __call__(self, channels: int) -> nn.Module:
        if self._statistics is None:
            return nn.GroupNorm(self._num_groups, channels)
        return BatchChannelNorm2d(channels, self._num_groups, statistics=self._statistics)
