"""What looking a dataset over takes and gives: what a model needs, and what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Needs", "Report", "Severity", "first_few"]

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something wrong with a dataset.

    Attributes:
        severity: ``"error"`` where a run would fail or learn from wrong labels, ``"warning"``
            where it can go on, with less data or other pixels than meant.
        message: what, how many, and the first ids.
        examples: entries of the file that show it, the first few; empty where none does.
    """

    severity: Severity
    message: str
    examples: Sequence[Any] = ()


@dataclass(frozen=True)
class Needs:
    """What a model wants of a dataset.

    Attributes:
        training: whether the data are trained on; otherwise they are evaluated on.
        num_classes: of the model; None where it is not known.
        num_classes_key: the config key that sets it.
        masks: whether each instance needs a mask.
        mask_format: ``"polygon"`` or ``"bitmask"``, as the mapper is told; None where the masks
            may be of either kind.
        num_keypoints: of each instance; 0 where none are needed.
        filter_empty: whether training leaves out the images without annotations.
        min_keypoints: visible ones that an image needs to be trained on.
        skip_bad: whether training goes on without the images that cannot be read.
        coco_evaluation: whether pycocotools evaluates on the annotations.
        sample: images that are decoded, spread over the dataset; 0: all.
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
    """What is wrong with a dataset.

    Attributes:
        source: its name, or its file.
        findings: errors first.
        class_names: in the order of the model's outputs; empty where they could not be read.
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
        """The source, then a line a finding."""
        ordered = sorted(self.findings, key=lambda finding: finding.severity)
        lines = [f"  {finding.severity}: {finding.message}" for finding in ordered]
        return "\n".join([self.source, *lines])


def first_few(values: Iterable[Any], count: int = 5) -> str:
    """``"1, 2, 3, …"``"""
    values = list(values)
    return ", ".join(map(str, values[:count])) + (", …" if len(values) > count else "")
