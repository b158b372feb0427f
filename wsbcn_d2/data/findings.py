"""Input and result of checking a dataset: what a model needs, and the findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Needs", "Report", "Severity", "first_few"]

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """A flaw of a dataset.

    Attributes:
        severity: ``"error"`` if a run would fail or learn from wrong labels, ``"warning"`` if it
            can continue with less data or other pixels than intended.
        message: the flaw, the number of entries that have it, and the first ids.
        examples: the first few of these entries, if any.
    """

    severity: Severity
    message: str
    examples: Sequence[Any] = ()


@dataclass(frozen=True)
class Needs:
    """What a model needs of a dataset.

    Attributes:
        training: whether the dataset is for training; otherwise it is for evaluation.
        num_classes: number of classes of the model; None if it is not known.
        num_classes_key: config key that sets it.
        masks: whether each instance needs a mask.
        mask_format: ``"polygon"`` or ``"bitmask"``, the setting of the mapper; None if both are
            accepted.
        num_keypoints: keypoints per instance; 0 if none are needed.
        filter_empty: whether training leaves out images without annotations.
        min_keypoints: visible keypoints that a training image needs.
        skip_bad: whether training continues without the images that cannot be read.
        coco_evaluation: whether pycocotools evaluates on the annotations.
        sample: number of images to decode, spread over the dataset; 0 for all.
    """

    training: bool = True
    num_classes: int | None = None
    num_classes_key: str = "the model's num_classes"
    masks: bool = False
    mask_format: str | None = None
    num_keypoints: int = 0
    filter_empty: bool = True
    min_keypoints: int = 0
    skip_bad: bool = False
    coco_evaluation: bool = False
    sample: int = 16


@dataclass
class Report:
    """The findings on a dataset.

    Attributes:
        source: name of the dataset, or its file.
        findings: the findings, errors first.
        class_names: class names in the order of the model's outputs; empty if they could not be
            read.
    """

    source: str
    findings: list[Finding] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)

    def has_errors(self) -> bool:
        """Whether a run would fail, or learn from wrong labels."""
        return any(finding.severity == "error" for finding in self.findings)

    def add(self, severity: Severity, message: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(severity, message))

    def __str__(self) -> str:
        """The source, followed by one line per finding."""
        ordered = sorted(self.findings, key=lambda finding: finding.severity)
        lines = [f"  {finding.severity}: {finding.message}" for finding in ordered]
        return "\n".join([self.source, *lines])


def first_few(values: Iterable[Any], count: int = 5) -> str:
    """``"1, 2, 3, …"``"""
    values = list(values)
    return ", ".join(map(str, values[:count])) + (", …" if len(values) > count else "")
