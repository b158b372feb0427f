"""The classifier's loss and start, and the accuracy, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone.resnet import BasicBlock

from projects.classification.classification import NormWithGroups, TopKEvaluator

CONFIG = "projects/classification/configs/digits/digits_resnet8_ws_gn.py"


def classifier(**options):
    torch.manual_seed(0)
    config = LazyConfig.load(CONFIG).model
    config.update(options)
    return instantiate(config)


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return [{"image": image, "label": i % 10} for i, image in enumerate(images)]


def log_scores(model, inputs):
    model.eval()
    with torch.no_grad():
        scores = torch.stack([output["scores"] for output in model(inputs)])
    model.train()
    assert torch.allclose(scores.sum(dim=1), torch.ones(len(inputs)))
    return scores.double().log()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy_to_smoothed_labels(smoothing):
    inputs = batch()
    model = classifier(label_smoothing=smoothing)
    targets = torch.full((6, 10), smoothing / 10, dtype=torch.float64)
    targets[range(6), range(6)] += 1 - smoothing
    # GN computes the same in training as in evaluation.
    expected = -(targets * log_scores(model, inputs)).sum(dim=1).mean()
    assert torch.allclose(model(inputs)["loss_cls"].double(), expected, rtol=1e-5)


def test_mixup_of_one_image_with_itself_changes_nothing_and_of_others_does():
    one, several = batch(1), batch()
    plain, mixing = classifier(), classifier(mixup_alpha=0.4)
    for model in (plain, mixing):
        model.backbone.linear.weight.data *= 100  # scores that differ
    assert torch.allclose(mixing(one)["loss_cls"], plain(one)["loss_cls"], rtol=1e-5)
    assert not torch.allclose(mixing(several)["loss_cls"], plain(several)["loss_cls"], rtol=1e-3)


def test_zero_gamma_starts_each_block_as_its_shortcut():
    model = classifier(zero_gamma=True)
    blocks = [m for m in model.backbone.modules() if isinstance(m, BasicBlock)]
    assert len(blocks) == 3
    for block in blocks:
        x = torch.randn(2, block.in_channels, 8, 8)
        shortcut = x if block.shortcut is None else block.shortcut(x)
        assert torch.equal(block(x), shortcut.relu())


def test_accuracy_is_that_of_sorted_scores():
    rng = np.random.RandomState(0)
    scores, labels = rng.rand(40, 7), rng.randint(0, 7, 40)
    evaluator = TopKEvaluator(ks=(1, 3))
    evaluator.reset()
    for part in (slice(0, 15), slice(15, 40)):
        evaluator.process(
            [{"label": int(label)} for label in labels[part]],
            [{"scores": torch.from_numpy(row)} for row in scores[part]],
        )
    order = np.argsort(-scores, axis=1)
    results = evaluator.evaluate()["classification"]
    for k in (1, 3):
        hits = [label in row[:k] for label, row in zip(labels, order, strict=True)]
        assert results[f"top{k}"] == pytest.approx(100 * np.mean(hits))


def test_norm_with_groups():
    x = torch.randn(2, 16, 4, 4)
    for name in ("GN", "BCN", "BatchBCN", "SyncBCN"):
        norm = NormWithGroups(name, num_groups=4)(16)
        assert norm.num_groups == 4
        assert norm(x).shape == x.shape
    with pytest.raises(ValueError, match="'LN'"):
        NormWithGroups("LN", 4)
