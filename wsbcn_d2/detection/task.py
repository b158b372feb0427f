"""What the engine has to know of detection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)
from torch import nn

from ..config import Config, Task
from ..errors import ConfigError
from .data_check import check_detection_data
from .own_data import add_data_config, use_own_data

if TYPE_CHECKING:
    from ..config import RunConfig

__all__ = ["Detection"]


class Detection(Task):
    """Boxes, masks and keypoints, as detectron2's ``tools/train_net.py`` trains them."""

    metrics = ("AP", "AP50", "AP75", "APs", "APm", "APl")

    def add_config(self, cfg: CfgNode) -> None:
        add_data_config(cfg)

    def use_dataset(self, cfg: Config, opts: Sequence[str], dataset: str | None) -> list[str]:
        return use_own_data(cfg, opts, dataset)

    def build_evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
        if kind == "coco":
            return COCOEvaluator(dataset_name, output_dir=output_dir)
        if kind == "lvis":
            return LVISEvaluator(dataset_name, output_dir=output_dir)
        if kind == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        raise ConfigError(
            f"evaluator_type {kind!r} of dataset {dataset_name!r}: a yaml config evaluates coco, "
            "lvis or pascal_voc; use a lazy config, which names its evaluator"
        )

    def check_data(self, config: RunConfig, splits: Sequence[str]) -> None:
        check_detection_data(config, splits)

    def plot_predictions(self, model: nn.Module, config: RunConfig, output: str) -> None:
        # Imported here: matplotlib takes a second, which nothing else waits for.
        from .plots import plot_predictions

        source = config.first_test_set()
        if source is not None:
            vis = config.options.vis
            plot_predictions(
                model,
                *source,
                output,
                num_images=vis.num_images,
                score_threshold=vis.score_threshold,
            )
