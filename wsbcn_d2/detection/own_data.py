"""``--dataset FOLDER`` and the keys ``data.…``: a config for the user's own data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from omegaconf import DictConfig, OmegaConf

from ..data.formats import OwnData, Split, read_own_data
from ..errors import ConfigError, did_you_mean

__all__ = ["add_data_config", "use_own_data"]

_KINDS: dict[type, tuple[str, Any]] = {
    str: ("a path", str),
    int: ("a whole number", int),
    float: ("a number", (int, float)),
}


@dataclass(frozen=True)
class DataOptions:
    """What `read_own_data` takes, under the keys ``data`` (lazy) and ``DATA`` (yaml)."""

    train: str = ""
    val: str = ""
    val_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            words, kinds = _KINDS[type(field.default)]
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ConfigError(f"data.{field.name} ({value!r}) must be {words}")
        if not 0 < self.val_share < 1:
            raise ConfigError(f"data.val_share ({self.val_share}) must be between 0 and 1")

    def absolute(self) -> DataOptions:
        """With absolute paths, as a resumed run may be started from elsewhere."""
        train, val = (
            path and os.path.abspath(os.path.expanduser(path)) for path in (self.train, self.val)
        )
        return dataclasses.replace(self, train=train, val=val)


def add_data_config(cfg: CfgNode) -> None:
    """Add the keys ``DATA.TRAIN`` and so on to detectron2's yaml config."""
    cfg.DATA = CfgNode({f.name.upper(): f.default for f in dataclasses.fields(DataOptions)})
    cfg.DATA.CLASSES = []


def use_own_data(cfg: Any, opts: Sequence[str], dataset: str | None = "") -> list[str]:
    """Fit a config to the user's data, where it or an override names some, and register these.

    Loaders, classes and evaluation are set; without masks in the data, a mask head is left off. A
    recipe's own choices go first, the user's overrides, which are applied later, last.

    Args:
        cfg: of either kind; changed in place.
        opts: overrides.
        dataset: the value of ``--dataset``, which is ``data.train``; None: no data are read, as a
            model that is only used needs none.

    Returns:
        the overrides that are not about ``data``.

    Raises:
        ConfigError: an unknown key, or a config that boxes and masks do not suffice for.
        UserError: faults in the data, as `read_own_data`.
    """
    if isinstance(cfg, CfgNode):
        pairs = list(zip(opts[::2], opts[1::2], strict=False))
        cfg.merge_from_list([word for k, v in pairs if k.startswith("DATA.") for word in (k, v)])
        values = {key.lower(): value for key, value in cfg.DATA.items()}
        rest = [word for k, v in pairs if not k.startswith("DATA.") for word in (k, v)]
    else:
        mine = [opt for opt in opts if opt.startswith("data.")]
        node = cfg.get("data")
        # A config of somebody else's may have a `data` that is another thing.
        known = isinstance(node, DictConfig) and "train" in node
        if not (mine or dataset or known):
            return list(opts)
        overrides = OmegaConf.from_dotlist([opt.removeprefix("data.") for opt in mine])
        values = dict(
            OmegaConf.merge(dataclasses.asdict(DataOptions()), node if known else {}, overrides)
        )
        rest = [opt for opt in opts if not opt.startswith("data.")]
    if dataset:
        values["train"] = dataset
    values.pop("classes", None)
    names = [field.name for field in dataclasses.fields(DataOptions)]
    for key in values:
        if key not in names:
            raise ConfigError(f"data.{key}: no such key; {did_you_mean(str(key), names)}")
    options = DataOptions(**values).absolute()
    if not options.train:
        if options.val:
            raise ConfigError("data.val is given without data.train")
        return rest
    if dataset is None:
        return rest
    own = read_own_data(**dataclasses.asdict(options))
    title = Path(options.train).stem
    registered = [
        _register(f"own_{title}_{key}", split, own.classes)
        for key, split in (("train", own.train), ("val", own.val))
    ]
    # The names too, for whoever uses the model where the data are not.
    described = {**dataclasses.asdict(options), "classes": own.classes}
    if isinstance(cfg, CfgNode):
        cfg.DATA.update({key.upper(): value for key, value in described.items()})
        _fit_yaml(cfg, own, *registered)
    else:
        cfg.data = described
        _fit_lazy(cfg, own, *registered)
    for name in registered:
        # Told by `check_data`, once, when there is a log.
        MetadataCatalog.get(name).description = _describe(own)
    return rest


def _describe(own: OwnData) -> str:
    """A line on the data, and one on each thing that was decided about them."""
    counts = f"{own.train.num_images} training and {own.val.num_images} validation images"
    masks = "boxes and masks" if own.masks else "boxes"
    line = f"{counts} with {masks} of {len(own.classes)} classes: {', '.join(own.classes)}"
    return "\n  ".join([line, *dict.fromkeys(own.notes)])


def _register(name: str, split: Split, classes: list[str]) -> str:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, split.json_file, split.image_root)
    MetadataCatalog.get(name).set(origin=split.origin, thing_classes=classes)
    return name


def _fit_lazy(cfg: DictConfig, own: OwnData, train: str, val: str) -> None:
    for key in ("dataloader.train.dataset.names", "dataloader.test.dataset.names"):
        if OmegaConf.select(cfg, key) is None:
            raise ConfigError(f"--dataset, data.train: the config has no {key} to put the data in")
    for key in ("model.sem_seg_head", "model.roi_heads.keypoint_head"):
        if OmegaConf.select(cfg, key) is not None:
            raise ConfigError(
                f"--dataset, data.train: gives boxes and masks, and the config has a {key}; take a "
                "Faster or Mask R-CNN, RetinaNet or FCOS"
            )
    cfg.dataloader.train.dataset.names = train
    cfg.dataloader.test.dataset.names = val
    owner = cfg.model.get("roi_heads", cfg.model)
    if "num_classes" not in owner:
        raise ConfigError(
            "--dataset, data.train: the config has neither model.roi_heads.num_classes nor "
            "model.num_classes"
        )
    owner.num_classes = len(own.classes)
    mapper = cfg.dataloader.train.get("mapper", {})
    heads = cfg.model.get("roi_heads", {})
    if own.masks:
        if mapper.get("use_instance_mask") and own.run_lengths:
            mapper.instance_mask_format = "bitmask"
        return
    if heads.get("mask_head") is not None:
        own.notes.append("there are no masks: the mask head is left off")
        for key in ("mask_in_features", "mask_pooler", "mask_head"):
            heads.pop(key, None)
    if "use_instance_mask" in mapper:
        mapper.use_instance_mask = False


def _fit_yaml(cfg: CfgNode, own: OwnData, train: str, val: str) -> None:
    if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.META_ARCHITECTURE in ("PanopticFPN", "SemanticSegmentor"):
        raise ConfigError(
            "--dataset, DATA.TRAIN: gives boxes and masks, and the config trains keypoints or "
            "semantic segmentation; take a Faster or Mask R-CNN or RetinaNet"
        )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (val,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(own.classes)
    if own.run_lengths:
        cfg.INPUT.MASK_FORMAT = "bitmask"
    if cfg.MODEL.MASK_ON and not own.masks:
        own.notes.append("there are no masks: the mask head is left off")
        cfg.MODEL.MASK_ON = False
