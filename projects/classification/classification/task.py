"""What the engine has to know of classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from wsbcn_d2.config.targets import build
from wsbcn_d2.engine import RunConfig, Task
from wsbcn_d2.errors import UserError

__all__ = ["Classification"]


class Classification(Task):
    """Lazy configs with a list of `data` under ``dataloader.….dataset``."""

    metrics = ("top1", "top5")

    def check_data(self, config: RunConfig, splits: Sequence[str]) -> None:
        """Compare the labels with the number of classes.

        Raises:
            UserError: a label outside of it, with the image.
        """
        key = "model.backbone.num_classes"
        num_classes = OmegaConf.select(config.cfg, key)
        for split in splits:
            name = f"dataloader.{split}.dataset"
            node = OmegaConf.select(config.cfg, name)
            for record in build(node, name) if node is not None else ():
                if not 0 <= record["label"] < num_classes:
                    raise UserError(
                        f"{name}: {record['file_name']} (image_id {record['image_id']}) has label "
                        f"{record['label']}, but labels go from 0 to {num_classes - 1}: "
                        f"{key} is {num_classes}"
                    )

    def plot_predictions(self, model: Any, config: RunConfig, output: str) -> None:
        # Imported here: matplotlib takes a second, which nothing else waits for.
        from .plots import plot_predictions

        loader = OmegaConf.select(config.cfg, "dataloader.test")
        if loader is not None and config.options.vis.num_images > 0:
            records = build(loader.dataset, "dataloader.test.dataset")
            mapper = build(loader.mapper, "dataloader.test.mapper")
            plot_predictions(
                model, records, mapper, output, num_images=config.options.vis.num_images
            )
