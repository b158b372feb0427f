"""The losses of a network against their definition."""

from __future__ import annotations

import torch
from torch import nn

from projects.semantic_segmentation.semantic_segmentation import Segmentor

WEIGHTS = [0.1, 1.0, 0.5]


class Backbone(nn.Module):
    def forward(self, images):
        return {"half": images[..., ::2, ::2]}


class Head(nn.Module):
    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.predictor = nn.Conv2d(3, 3, 1)
        self.predictor.weight.data.normal_(generator=generator)

    def layers(self, features):
        return self.predictor(features["half"])


def segmentor(**options):
    return Segmentor(
        Backbone(), Head(0), Head(1), pixel_mean=[0.5] * 3, pixel_std=[2.0] * 3, **options
    )


def expected_loss(model, head, image, labels):
    """The weighted mean over labelled pixels, one by one, in float64."""
    scores = head.layers(model.backbone((image[None] - 0.5) / 2))
    scores = nn.functional.interpolate(scores, size=labels.shape, mode="bilinear")[0].double()
    total = count = 0.0
    for y, x in torch.nonzero(labels != 255).tolist():
        weight = WEIGHTS[labels[y, x]]
        total -= weight * scores[:, y, x].log_softmax(0)[labels[y, x]]
        count += weight
    return total / count


def test_losses_are_weighted_means_over_labelled_pixels():
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(3, 8, 10, generator=generator) * 20
    labels = torch.randint(0, 3, (8, 10), generator=generator)
    labels[:3, :4] = 255
    model = segmentor(class_weights=WEIGHTS, auxiliary_weight=0.3)
    losses = model([{"image": image, "sem_seg": labels}])
    main = expected_loss(model, model.sem_seg_head, image, labels)
    auxiliary = expected_loss(model, model.auxiliary_head, image, labels)
    assert torch.allclose(losses["loss_sem_seg"].double(), main, rtol=1e-5)
    assert torch.allclose(losses["loss_auxiliary"].double(), 0.3 * auxiliary, rtol=1e-5)


def test_what_a_smaller_image_is_padded_with_does_not_count():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(3)) * 20
    labels = torch.zeros(8, 8, dtype=torch.long)
    unlabelled = {"image": torch.zeros(3, 8, 12), "sem_seg": torch.full((8, 12), 255)}
    model = segmentor()
    # At the border to the padding, scores are enlarged from both sides.
    labels[:, 6:] = 255
    alone = model([{"image": image, "sem_seg": labels}])["loss_sem_seg"]
    padded = model([{"image": image, "sem_seg": labels}, unlabelled])["loss_sem_seg"]
    assert torch.allclose(alone, padded, rtol=1e-5)


def test_crops_without_labels_have_a_loss_of_zero_and_finite_gradients():
    model = segmentor(class_weights=WEIGHTS)
    losses = model([{"image": torch.zeros(3, 6, 6), "sem_seg": torch.full((6, 6), 255)}])
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0, 0]
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
