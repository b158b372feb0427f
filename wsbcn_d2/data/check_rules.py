"""Rules for COCO annotations: one table for each kind of entry.

On what is an error here, detectron2 and pycocotools raise a bare ``KeyError`` or
``AssertionError``; what is a warning here they leave out silently, or with one line in a long log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .findings import Finding, Needs, Severity, first_few

__all__ = [
    "Rule",
    "annotation_rules",
    "apply_rules",
    "category_rules",
    "has_no_polygon",
    "image_rules",
]

_MIN_POLYGON = 6  # numbers: three points
_EXAMPLES = 4
# COCO's own boxes reach beyond their images by fractions of a pixel.
_BOX_TOLERANCE = 1.0


@dataclass(frozen=True)
class Rule:
    """A property that entries must not have.

    Attributes:
        severity: severity of the `Finding`.
        what: text that follows "3 of 12 annotations".
        broken: returns whether an entry breaks the rule; it has passed the rules before.
    """

    severity: Severity
    what: str
    broken: Callable[[dict[str, Any]], bool]


def apply_rules(entries: Sequence[Any], rules: Sequence[Rule], noun: str) -> list[Finding]:
    """Find the first rule that each entry breaks.

    Args:
        entries: entries of the JSON file.
        rules: in order; a rule that raises on an entry is broken by it.
        noun: plural name of the entries.
    """
    broken: dict[int, list[Any]] = {}
    for entry in entries:
        for number, rule in enumerate(rules):
            try:
                if not rule.broken(entry):
                    continue
            except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError):
                pass
            broken.setdefault(number, []).append(entry)
            break
    return [
        Finding(
            rules[number].severity,
            f"{len(found)} of {len(entries)} {noun} {rules[number].what} ({_ids(found)})",
            found[:_EXAMPLES],
        )
        for number, found in sorted(broken.items())
    ]


def _ids(entries: Sequence[Any]) -> str:
    if all(isinstance(entry, dict) and "source" in entry for entry in entries[:5]):
        return first_few(entry["source"] for entry in entries)  # file and line
    if all(isinstance(entry, dict) and "id" in entry for entry in entries[:5]):
        return "id " + first_few(entry["id"] for entry in entries)
    return "the first: " + repr(entries[0])[:100]


def _id_rules(may_repeat: bool = False) -> list[Rule]:
    seen: set[Any] = set()
    kinds: set[type] = set()

    def repeated(entry: dict[str, Any]) -> bool:
        before = len(seen)
        seen.add(entry["id"])
        return len(seen) == before and not may_repeat

    def mixed(entry: dict[str, Any]) -> bool:
        kinds.add(str if isinstance(entry["id"], str) else int)
        return len(kinds) > 1

    return [
        _no_id("id"),
        Rule("error", "have an id that is text where others are numbers, or the reverse", mixed),
        Rule("error", "have an id that an earlier one has", repeated),
    ]


def _no_id(key: str) -> Rule:
    def broken(entry: dict[str, Any]) -> bool:
        return not isinstance(entry[key], int | str)

    return Rule("error", f"have a {key!r} that is neither an integer nor text", broken)


def _without(keys: Iterable[str]) -> list[Rule]:
    def rule(key: str) -> Rule:
        return Rule("error", f"have no {key!r}", lambda entry: entry.get(key) is None)

    return [rule(key) for key in keys]


_NO_OBJECT = Rule("error", "are no JSON objects", lambda entry: not isinstance(entry, dict))


def category_rules() -> list[Rule]:
    """Rules for ``categories``."""
    return [
        _NO_OBJECT,
        *_without(["id", "name"]),
        *_id_rules(),
    ]


def image_rules(required: Iterable[str]) -> list[Rule]:
    """Rules for ``images``, which must have these keys."""
    return [
        _NO_OBJECT,
        *_without(["id", *required]),
        *_id_rules(),
        Rule("error", "have a width or height that is no positive integer", _has_wrong_size),
        Rule("error", "have a 'file_name' that is no text", _has_wrong_name),
    ]


def annotation_rules(
    images: dict[Any, dict[str, Any]], categories: Iterable[Any], needs: Needs, ids_may_repeat: bool
) -> list[Rule]:
    """Rules for ``annotations``: errors, then what detectron2 leaves out or clips.

    Args:
        images: images by id.
        categories: ids of the categories.
        needs: what the model needs.
        ids_may_repeat: whether annotations may share ids, which detectron2 allows in COCO's
            minival files.
    """
    known = set(categories)
    evaluated: list[str] = []
    if needs.coco_evaluation and not needs.training:
        evaluated = ["area", "iscrowd", *(["num_keypoints"] if needs.num_keypoints else [])]
    rules = [
        _NO_OBJECT,
        *_without(["id", "image_id", "category_id", "bbox", *evaluated]),
        *_id_rules(ids_may_repeat),
        _no_id("image_id"),
        Rule(
            "warning",
            "have an image_id that is not among the images, and are left out",
            lambda a: a["image_id"] not in images,
        ),
        Rule(
            "error",
            "have a category_id that is not among the categories "
            f"({first_few(sorted(known, key=str), 10)})",
            lambda a: a["category_id"] not in known,
        ),
        Rule(
            "error",
            "have an 'ignore', which detectron2 refuses: use 'iscrowd', or remove them",
            lambda a: a.get("ignore", 0) != 0,
        ),
        Rule(
            "error",
            "have a bbox that is not four finite numbers",
            lambda a: not _finite(a["bbox"], 4),
        ),
        Rule(
            "error",
            "have a segmentation that is neither a list of polygons [x1, y1, x2, …] of finite "
            "numbers nor run lengths with 'size' and 'counts'",
            _has_wrong_segmentation,
        ),
        Rule(
            "error",
            "have run lengths of another size than their image",
            lambda a: _has_runs_of_another_size(a, images[a["image_id"]]),
        ),
        *(_mask_rules(needs) if needs.masks else []),
        *(_keypoint_rules(needs) if needs.num_keypoints else []),
        Rule(
            "warning",
            "have no polygon of at least three points"
            + (", and are left out" if needs.training else ""),
            has_no_polygon,
        ),
        Rule(
            "warning",
            "have a polygon of fewer than three points beside others, and lose it",
            _has_a_short_polygon,
        ),
        *(_box_rules(images) if needs.training else []),
    ]
    if evaluated:
        what = "have the id 0, which pycocotools takes for no match: number them from 1"
        rules.append(Rule("warning", what, lambda a: a["id"] == 0))
    return rules


def _is_instance(annotation: dict[str, Any], needs: Needs) -> bool:
    # Training leaves crowds out; pycocotools reads them as the others.
    return not (needs.training and annotation.get("iscrowd"))


def _mask_rules(needs: Needs) -> list[Rule]:
    rules = [
        Rule(
            "error",
            "have no segmentation, which the model's mask head needs",
            lambda a: _is_instance(a, needs) and not _has_segmentation(a),
        )
    ]
    if needs.training and needs.mask_format == "polygon":
        rules.append(
            Rule(
                "error",
                "have run lengths where the mapper wants polygons; set "
                "dataloader.train.mapper.instance_mask_format=bitmask (lazy) or INPUT.MASK_FORMAT "
                "bitmask (yaml)",
                lambda a: _is_instance(a, needs) and not isinstance(a["segmentation"], list),
            )
        )
    return rules


def _keypoint_rules(needs: Needs) -> list[Rule]:
    number, length = needs.num_keypoints, 3 * needs.num_keypoints
    return [
        Rule(
            "error",
            f"have no keypoints, of which the model's keypoint head needs {number}",
            lambda a: _is_instance(a, needs) and not a.get("keypoints"),
        ),
        Rule(
            "error",
            f"have keypoints that are not {length} finite numbers: x, y and visibility of {number}",
            lambda a: _is_instance(a, needs) and not _finite(a["keypoints"], length),
        ),
    ]


def _box_rules(images: dict[Any, dict[str, Any]]) -> list[Rule]:
    box = "have a bbox [x, y, width, height]"

    def rule(what: str, broken: Callable[[dict[str, Any], dict[str, Any]], bool]) -> Rule:
        return Rule(
            "warning",
            f"{box} {what}",
            lambda a: not a.get("iscrowd") and broken(a, images[a["image_id"]]),
        )

    return [
        rule("that is empty, and are left out", lambda a, image: min(a["bbox"][2:]) <= 0),
        rule("outside their image, and are left out", lambda a, image: _overlap(a, image) <= 0),
        rule("that reaches beyond their image, and is cut off", _reaches_beyond),
    ]


def has_no_polygon(annotation: dict[str, Any]) -> bool:
    """Whether the mask is a list of polygons, and all of them have too few points."""
    masks = annotation.get("segmentation")
    if not isinstance(masks, list) or not masks:
        return False
    return not any(len(p) >= _MIN_POLYGON and len(p) % 2 == 0 for p in masks)


def _has_a_short_polygon(annotation: dict[str, Any]) -> bool:
    masks = annotation.get("segmentation")
    return isinstance(masks, list) and any(len(p) < _MIN_POLYGON or len(p) % 2 != 0 for p in masks)


def _has_segmentation(annotation: dict[str, Any]) -> bool:
    masks = annotation.get("segmentation")
    return masks is not None and len(masks) > 0


def _finite(numbers: Any, length: int | None = None) -> bool:
    return length in (None, len(numbers)) and math.isfinite(sum(numbers))


def _has_wrong_size(image: dict[str, Any]) -> bool:
    sides = [image[key] for key in ("width", "height") if key in image]
    return not all(isinstance(side, int) and side > 0 for side in sides)


def _has_wrong_name(image: dict[str, Any]) -> bool:
    return not isinstance(image.get("file_name", ""), str)


def _has_wrong_segmentation(annotation: dict[str, Any]) -> bool:
    masks = annotation.get("segmentation")
    if masks is None:
        return False
    if isinstance(masks, dict):
        return "size" not in masks or "counts" not in masks
    if isinstance(masks, list):
        return not all(map(_finite, masks))
    return not hasattr(masks, "shape")  # a bitmap, of a dataset that is no file


def _has_runs_of_another_size(annotation: dict[str, Any], image: dict[str, Any]) -> bool:
    masks = annotation.get("segmentation")
    if not isinstance(masks, dict) or "height" not in image:
        return False
    size, counts = list(masks["size"]), masks["counts"]
    if size != [image["height"], image["width"]]:
        return True
    return isinstance(counts, list) and sum(counts) != size[0] * size[1]


def _overlap(annotation: dict[str, Any], image: dict[str, Any]) -> float:
    """Shorter side of the intersection of box and image, in pixels; negative if they are apart."""
    x, y, w, h = annotation["bbox"]
    width, height = image.get("width", math.inf), image.get("height", math.inf)
    return min(min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0))


def _reaches_beyond(annotation: dict[str, Any], image: dict[str, Any]) -> bool:
    x, y, w, h = annotation["bbox"]
    width, height = image.get("width", math.inf), image.get("height", math.inf)
    return max(-x, -y, x + w - width, y + h - height) > _BOX_TOLERANCE
