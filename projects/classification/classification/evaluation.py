"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

__all__ = ["TopKEvaluator"]


class TopKEvaluator(DatasetEvaluator):
    """The share of images, in percent, whose label is among the k classes of highest score.

    Equal scores count against the label, so that a model that says the same of all classes has an
    accuracy of 0.

    Args:
        ks: the values of k.
    """

    def __init__(self, ks: tuple[int, ...] = (1, 5)) -> None:
        self._ks = tuple(ks)
        self.reset()

    def reset(self) -> None:
        self._count = 0
        self._correct = [0] * len(self._ks)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        scores = torch.stack([output["scores"] for output in outputs])
        labels = torch.tensor([x["label"] for x in inputs], device=scores.device)
        own = scores.gather(1, labels[:, None])
        # Of the classes with at least this score, the label is one.
        ranks = (scores >= own).sum(dim=1)
        self._count += len(inputs)
        for i, k in enumerate(self._ks):
            self._correct[i] += int((ranks <= k).sum())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Accuracies over the images of all processes, on rank 0."""
        gathered = comm.gather((self._count, self._correct))
        if not comm.is_main_process():
            return None
        count = sum(n for n, _ in gathered)
        totals = [sum(column) for column in zip(*(correct for _, correct in gathered), strict=True)]
        return OrderedDict(
            classification={
                f"top{k}": 100 * total / max(count, 1)
                for k, total in zip(self._ks, totals, strict=True)
            }
        )
