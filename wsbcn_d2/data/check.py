"""Checks of a detection dataset before it is used for training or evaluation.

The JSON file itself is checked, as detectron2 would stop at the first error in it, with an
exception that names neither the file nor the entry.
"""

from __future__ import annotations

import gc
import json
import os
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from .check_files import check_files
from .check_rules import (
    annotation_rules,
    apply_rules,
    category_rules,
    has_no_polygon,
    image_rules,
)
from .findings import Finding, Needs, Report, first_few

__all__ = ["check_coco_json", "check_dataset", "read_coco_json"]


def check_dataset(name: str, needs: Needs) -> Report:
    """Check a dataset of detectron2's catalog.

    Args:
        name: registered name. If its metadata have ``json_file`` and ``image_root``, as those of
            ``register_coco_instances``, the file is checked, and otherwise the dicts that the
            registered function returns.
        needs: what the model needs.
    """
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if json_file is None or image_root is None:
        return _check_dicts(name, needs)
    # Of a user's own data the file may be a copy; they know it by its origin.
    source = f"dataset {name!r}, {metadata.get('origin', json_file)}:"
    if "://" not in json_file and not os.path.exists(json_file):
        # Some datasets are made when they are first loaded, as the embedded one.
        try:
            DatasetCatalog.get(name)
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever the registered function raises
            return Report(source, [_loading_failed(error)])
    lvis = metadata.get("evaluator_type") == "lvis"
    report = check_coco_json(
        json_file, image_root, replace(needs, coco_evaluation=False) if lvis else needs, lvis=lvis
    )
    report.source = source
    registered = list(metadata.get("thing_classes", []))
    if registered and report.class_names and registered != report.class_names and not lvis:
        report.add(
            "error",
            f"has the classes {first_few(report.class_names)}, but the dataset was registered "
            f"with the thing_classes {first_few(registered)}; leave those out, or make them equal",
        )
    return report


def check_coco_json(json_file: str, image_root: str, needs: Needs, *, lvis: bool = False) -> Report:
    """Check a file in COCO's format, and its images.

    Args:
        json_file: path, or URL that detectron2's ``PathManager`` reads.
        image_root: folder that the images' ``file_name`` are relative to.
        needs: what the model needs.
        lvis: whether the format is LVIS', in which images have a ``coco_url`` for a file name.
    """
    report = Report(f"{json_file}:")
    collecting = gc.isenabled()
    # It would look millions of new objects over, again and again, for the garbage that none is.
    gc.disable()
    try:
        content = _load_json(json_file)
        required = ("width", "height") if lvis else ("file_name", "width", "height")
        _check_content(report, content, image_root, needs, required, "minival" in json_file)
    except _Unreadable as error:
        report.add("error", str(error))
    finally:
        if collecting:
            gc.enable()
    return report


class _Unreadable(Exception):
    """The file cannot be read, in words."""


def _load_json(json_file: str) -> Any:
    try:
        path = PathManager.get_local_path(json_file)
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise _Unreadable("there is no such file") from None
    except IsADirectoryError:
        raise _Unreadable("is a folder; the JSON file of the annotations is wanted") from None
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(error.doc.rstrip()) - 1 or "Unterminated" in error.msg
        cut_off = "is cut off, or " if at_end else ""
        raise _Unreadable(f"{cut_off}is no valid JSON: {error}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise _Unreadable(f"cannot be read: {error}") from None


def read_coco_json(json_file: str) -> dict[str, Any]:
    """Read a file in COCO's format and check that it has its lists, but not their entries.

    Raises:
        UserError: the file cannot be read, or lacks a list.
    """
    report = Report(f"{json_file}:")
    try:
        content = _load_json(json_file)
        report.findings += _check_structure(content, Needs())
    except _Unreadable as error:
        report.add("error", str(error))
    if report.has_errors():
        raise UserError(str(report))
    return content


def _check_content(
    report: Report,
    content: Any,
    image_root: str,
    needs: Needs,
    required: Iterable[str],
    ids_may_repeat: bool = False,
) -> None:
    report.findings += _check_structure(content, needs)
    if report.has_errors():
        return
    images, categories = content["images"], content["categories"]
    annotations = content.get("annotations", [])
    report.findings += apply_rules(categories, category_rules(), "categories")
    report.findings += apply_rules(images, image_rules(required), "images")
    if report.has_errors():
        return
    ordered = sorted(categories, key=lambda category: category["id"])
    report.class_names = [category["name"] for category in ordered]
    report.findings += _check_num_classes(report.class_names, needs)
    by_id = {image["id"]: image for image in images}
    ids = [category["id"] for category in ordered]
    rules = annotation_rules(by_id, ids, needs, ids_may_repeat)
    found = apply_rules(annotations, rules, "annotations")
    report.findings += found
    if needs.training and all(finding.severity == "warning" for finding in found):
        report.findings += _check_emptiness(by_id, annotations, needs)
    if all("file_name" in image for image in images):
        report.findings += check_files(images, image_root, needs)


def _check_structure(content: Any, needs: Needs) -> list[Finding]:
    if not isinstance(content, dict):
        kind = type(content).__name__
        keys = "'images', 'annotations' and 'categories'"
        return [Finding("error", f"holds a {kind}, not an object with {keys}")]
    wanted = ["images", "categories", *(["annotations"] if needs.training else [])]
    lacking = [key for key in wanted if key not in content]
    if lacking:
        has = first_few(map(repr, content), 10) or "nothing"
        return [Finding("error", f"has no {', '.join(map(repr, lacking))}; it has {has}")]
    findings = []
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key, []), list):
            findings.append(Finding("error", f"{key!r} is no list"))
        elif not content.get(key, []) and key != "annotations":
            findings.append(Finding("error", f"{key!r} is empty"))
    return findings


def _check_num_classes(names: Sequence[str], needs: Needs) -> list[Finding]:
    if needs.num_classes is None or needs.num_classes == len(names):
        return []
    key = needs.num_classes_key
    counts = f"has {len(names)} classes ({first_few(names)}), but {key} is {needs.num_classes}"
    if needs.num_classes < len(names):
        return [Finding("error", f"{counts}; set it to {len(names)}")]
    never = needs.num_classes - len(names)
    return [Finding("warning", f"{counts}: the last {never} never occur")]


def _check_emptiness(
    images: dict[Any, dict[str, Any]], annotations: list[dict[str, Any]], needs: Needs
) -> list[Finding]:
    """Images that have nothing to be trained on, which detectron2 leaves out."""
    kept = [a for a in annotations if not a.get("iscrowd") and not has_no_polygon(a)]
    used = {a["image_id"] for a in kept}
    if needs.num_keypoints and needs.min_keypoints:
        visible: dict[Any, int] = {}
        for a in kept:
            count = sum(v > 0 for v in a.get("keypoints", [])[2::3])
            visible[a["image_id"]] = visible.get(a["image_id"], 0) + count
        used = {image_id for image_id, count in visible.items() if count >= needs.min_keypoints}
    empty = [image_id for image_id in images if image_id not in used]
    if not empty:
        return []
    what = f"{len(empty)} of {len(images)} images have nothing to be trained on"
    if len(empty) < len(images):
        consequence = ", and are left out" if needs.filter_empty else ""
        return [Finding("warning", f"{what}{consequence} (id {first_few(empty)})")]
    reasons = [f"there are {len(annotations)} annotations"]
    for count, reason in (
        (sum(bool(a.get("iscrowd")) for a in annotations), "are crowds ('iscrowd' is 1)"),
        (sum(map(has_no_polygon, annotations)), "have no polygon of at least three points"),
    ):
        if count:
            reasons.append(f"{count} {reason}")
    why = ": " + ", ".join(reasons)
    return [Finding("error" if needs.filter_empty else "warning", what + why)]


# --- datasets that are no COCO file ---


def _check_dicts(name: str, needs: Needs) -> Report:
    report = Report(f"dataset {name!r}:")
    needs = replace(needs, coco_evaluation=False)  # its evaluator makes a COCO file itself
    classes = MetadataCatalog.get(name).get("thing_classes")
    try:
        dicts = DatasetCatalog.get(name)
        if not isinstance(dicts, list) or not all(isinstance(record, dict) for record in dicts):
            return report  # a dataset of torch's, whose items are its own
        if dicts and "annotations" not in dicts[0]:
            return report  # semantic or panoptic segmentation alone
        content = _as_coco(dicts, classes, needs.num_classes)
    except Exception as error:  # whatever the registered function raises, or has made
        report.findings.append(_loading_failed(error))
    else:
        _check_content(report, content, "", needs, required=())
    return report


def _loading_failed(error: Exception) -> Finding:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}:{frame.lineno}"
    return Finding("error", f"loading it raised {type(error).__name__}: {error} (in {where})")


def _as_coco(
    dicts: list[dict[str, Any]], classes: list[str] | None, num_classes: int | None
) -> dict[str, Any]:
    """detectron2's dataset dicts in COCO's format, as far as the rules look at it.

    An annotation's id is ``image_id[index]``, as it has none.
    """
    annotations = []
    images = []
    for number, record in enumerate(dicts):
        image_id = record.get("image_id", number)
        images.append({**record, "id": image_id})
        for index, annotation in enumerate(record.get("annotations", [])):
            box = annotation.get("bbox")
            if box is not None:
                mode = annotation["bbox_mode"]
                box = BoxMode.convert(list(map(float, box)), mode, BoxMode.XYWH_ABS)
            entry = {**annotation, "id": f"{image_id}[{index}]", "image_id": image_id, "bbox": box}
            if hasattr(entry.get("keypoints"), "tolist"):
                entry["keypoints"] = entry["keypoints"].tolist()
            annotations.append(entry)
    if classes is None:
        present = max((a["category_id"] for a in annotations), default=0) + 1
        classes = [str(i) for i in range(num_classes or present)]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}
