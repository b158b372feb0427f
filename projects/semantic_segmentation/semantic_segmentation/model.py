"""A segmentation network: backbone, head, and an auxiliary head that only training uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from .inference import predict

__all__ = ["Segmentor"]


class Segmentor(nn.Module):
    """detectron2's ``SemanticSegmentor`` with an auxiliary loss, crops of any size and test scales.

    (detectron2's heads enlarge their scores by their stride, which has to divide the crop: 513,
    713 and 769 are no multiples.)

    Args:
        backbone: gives the features that the heads name.
        sem_seg_head: its ``layers`` gives class scores of the features: detectron2's
            ``DeepLabV3PlusHead``, or one of `heads`.
        auxiliary_head: another one, or None.
        pixel_mean: per channel, of RGB images in 0..255.
        pixel_std: the deviation.
        auxiliary_weight: of the auxiliary head's loss.
        ignore_value: label of pixels that do not count.
        class_weights: of each class in the loss, which is the mean with these weights; None for 1.
        align_corners: how class scores are enlarged, as in ``F.interpolate``; True in the releases
            of GN + WS and BCN + WS.
        test_scales: as in `predict`; also `test_flip` and `test_window`.
        test_flip: whether to look at mirrored images too.
        test_window: side of the windows for large images, or 0.
    """

    input_format = "RGB"  # what `SegmentationMapper` gives
    pixel_mean: Tensor
    pixel_std: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        sem_seg_head: Any,
        auxiliary_head: Any = None,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        auxiliary_weight: float = 0.4,
        ignore_value: int = 255,
        class_weights: Sequence[float] | None = None,
        align_corners: bool = False,
        test_scales: Sequence[float] = (1.0,),
        test_flip: bool = False,
        test_window: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.auxiliary_head = auxiliary_head
        self.auxiliary_weight = auxiliary_weight
        self.ignore_value = ignore_value
        self.align_corners = align_corners
        self.test_scales, self.test_flip = tuple(test_scales), test_flip
        self.test_window = test_window
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, False)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Segment images.

        Args:
            batched_inputs: dicts with ``image``, (3, H, W) in 0..255, and for training
                ``sem_seg``, labels (H, W). In evaluation ``height`` and ``width`` are the size of
                the output.

        Returns:
            in training the losses; otherwise a dict for each image with ``sem_seg``, class
            probabilities (C, height, width).
        """
        device = self.pixel_mean.device
        images = [
            (x["image"].to(device, non_blocking=True) - self.pixel_mean) / self.pixel_std
            for x in batched_inputs
        ]
        if self.training:
            # Smaller ones are padded; what is added does not count.
            labels = [x["sem_seg"].to(device) for x in batched_inputs]
            padded = ImageList.from_tensors(labels, pad_value=self.ignore_value)
            return self._losses(ImageList.from_tensors(images).tensor, padded.tensor)
        results = []
        for image, x in zip(images, batched_inputs, strict=True):
            probabilities = predict(
                self.scores,
                image[None],
                scales=self.test_scales,
                flip=self.test_flip,
                window=self.test_window,
            )
            size = probabilities.shape[-2:]
            wanted = x.get("height", size[0]), x.get("width", size[1])
            results.append({"sem_seg": sem_seg_postprocess(probabilities, size, *wanted)})
        return results

    def scores(self, images: Tensor) -> Tensor:
        """Class scores (N, C, H, W) of normalized images (N, 3, H, W)."""
        scores = self.sem_seg_head.layers(self.backbone(images))
        return self._enlarge(scores, images.shape[-2:])

    def _losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        losses = {"loss_sem_seg": self._loss(self.sem_seg_head.layers(features), labels)}
        if self.auxiliary_head is not None:
            loss = self._loss(self.auxiliary_head.layers(features), labels)
            losses["loss_auxiliary"] = self.auxiliary_weight * loss
        return losses

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        scores = self._enlarge(scores.float(), labels.shape[-2:])
        # The mean over a crop without labels is 0/0.
        reduction = "mean" if (labels != self.ignore_value).any() else "sum"
        return F.cross_entropy(
            scores,
            labels,
            weight=self.class_weights,
            ignore_index=self.ignore_value,
            reduction=reduction,
        )

    def _enlarge(self, scores: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(
            scores, size=tuple(size), mode="bilinear", align_corners=self.align_corners
        )
