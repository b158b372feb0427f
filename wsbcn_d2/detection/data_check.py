"""The datasets of a run, looked over once before it, for what its model needs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf

from ..config.targets import locate_target
from ..data.check import check_dataset
from ..data.findings import Needs, Report
from ..errors import ConfigError, UserError

__all__ = ["check_detection_data", "dataset_needs"]

if TYPE_CHECKING:
    from ..config import RunConfig

logger = logging.getLogger(__name__)


def check_detection_data(config: RunConfig, splits: Sequence[str]) -> None:
    """Check a detector's datasets; what is odd but not wrong is logged, once.

    Args:
        config: of the run.
        splits: ``"train"``, ``"test"`` or both.

    Raises:
        UserError: the run would fail on its data or learn from wrong labels.
    """
    reports = {}
    described = []
    for split in splits:
        needs = dataset_needs(config, split)
        for name in config.dataset_names(split):
            reports[split, name] = check_dataset(name, needs)
            described.append(MetadataCatalog.get(name).get("description"))
    _compare_classes(reports)
    found = [report for report in reports.values() if report.findings]
    text = "\n".join(dict.fromkeys(map(str, found)))  # one set may be of both splits
    if any(report.has_errors() for report in found):
        raise UserError(text)
    described = [own for own in dict.fromkeys(described) if own]
    if found or described:
        # As in every process; this one may be about to start them.
        setup_logger(config.options.output_dir, distributed_rank=comm.get_rank(), name="wsbcn_d2")
    for own in described:
        logger.info("Your data: %s", own)
    if found:
        logger.warning("The run goes on with these flaws of its data:\n%s", text)


def _compare_classes(reports: dict[tuple[str, str], Report]) -> None:
    """Have all datasets of a run mean the same by a class number; detectron2 does not look."""
    named = [(name, report) for (_, name), report in reports.items() if report.class_names]
    for _, report in named[1:]:
        first_name, first = named[0]
        ours, theirs = report.class_names, first.class_names
        if ours == theirs:
            continue
        if len(ours) != len(theirs):
            report.add("error", f"has {len(ours)} classes, and {first_name!r} has {len(theirs)}")
            continue
        number = next(i for i, name in enumerate(ours) if name != theirs[i])
        report.add(
            # Otherwise it may be a matter of spelling.
            "error" if sorted(ours) == sorted(theirs) else "warning",
            f"its classes are not those of {first_name!r}, in the same order: number {number} is "
            f"{ours[number]!r}, and {theirs[number]!r} there",
        )


def dataset_needs(config: RunConfig, split: str) -> Needs:
    """What a run wants of its ``"train"`` or ``"test"`` datasets.

    Read from the config, without building the model; what a config of one's own does not tell by
    detectron2's names is not asked for.

    Args:
        config: of the run.
        split: which datasets.

    Raises:
        ConfigError: the mapper leaves out what the model's heads need.
    """
    return (_lazy_needs if config.lazy else _yaml_needs)(config.cfg, split)


def _lazy_needs(cfg: DictConfig, split: str) -> Needs:
    key = "model.roi_heads.num_classes"
    if OmegaConf.select(cfg, key) is None:
        key = "model.num_classes"
    number = OmegaConf.select(cfg, key)
    needs = Needs(
        num_classes=number if isinstance(number, int) else None,
        num_classes_key=key,
        masks=OmegaConf.select(cfg, "model.roi_heads.mask_head") is not None,
        num_keypoints=OmegaConf.select(cfg, "model.roi_heads.keypoint_head.num_keypoints") or 0,
    )
    if split == "test":
        evaluator = OmegaConf.select(cfg, "dataloader.evaluator")
        tasks = OmegaConf.select(cfg, "dataloader.evaluator.tasks") if evaluator else None
        return replace(
            needs,
            training=False,
            coco_evaluation=bool(evaluator),
            masks=needs.masks and bool(evaluator) and (tasks is None or "segm" in tasks),
            num_keypoints=needs.num_keypoints if tasks is None or "keypoints" in tasks else 0,
        )
    node = "dataloader.train"
    return replace(
        needs,
        mask_format=_check_lazy_mapper(OmegaConf.select(cfg, f"{node}.mapper"), needs),
        filter_empty=bool(OmegaConf.select(cfg, f"{node}.dataset.filter_empty", default=True)),
        min_keypoints=OmegaConf.select(cfg, f"{node}.dataset.min_keypoints") or 0,
        skip_bad=cfg.train.bad_data.action == "skip",
    )


def _check_lazy_mapper(mapper: Any, needs: Needs) -> str | None:
    """The mapper's mask format, where it is detectron2's."""
    if not isinstance(mapper, DictConfig) or "_target_" not in mapper:
        return None
    if locate_target(mapper) != DatasetMapper:
        return None
    for needed, option, head in (
        (needs.masks, "use_instance_mask", "mask_head"),
        (needs.num_keypoints, "use_keypoint", "keypoint_head"),
    ):
        if needed and not mapper.get(option, False):
            raise ConfigError(
                f"dataloader.train.mapper.{option} must be True, as the model has a "
                f"roi_heads.{head}; set it, or remove the head"
            )
    return str(mapper.get("instance_mask_format", "polygon"))


def _yaml_needs(cfg: CfgNode, split: str) -> Needs:
    keys = {
        "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
        "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
        "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
    }
    key = keys.get(cfg.MODEL.META_ARCHITECTURE, "")
    heads = key == "MODEL.ROI_HEADS.NUM_CLASSES"
    node = (
        cfg.MODEL.RETINANET if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else cfg.MODEL.ROI_HEADS
    )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD
    return Needs(
        training=split == "train",
        num_classes=node.NUM_CLASSES if key else None,
        num_classes_key=key,
        masks=heads and cfg.MODEL.MASK_ON,
        mask_format=cfg.INPUT.MASK_FORMAT,
        num_keypoints=keypoints.NUM_KEYPOINTS if heads and cfg.MODEL.KEYPOINT_ON else 0,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints.MIN_KEYPOINTS_PER_IMAGE,
        skip_bad=cfg.DATALOADER.BAD_DATA.ACTION == "skip",
        coco_evaluation=True,
    )
