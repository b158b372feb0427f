"""The task: the part of a run that the engine does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError

if TYPE_CHECKING:
    from .options import Config
    from .run_config import RunConfig

__all__ = ["Task", "default_task"]


class Task:
    """What a project adds to the engine; every method has a default.

    The engine provides the training loop, launching, checks of the config, exact resume,
    accumulation, mixed precision, moving averages, stop signals and checkpoints that record their
    norms. A task defines what is trained and how it is evaluated:

    * For yaml configs, `add_config` and the ``build_…`` methods, which have the names of
      detectron2's ``DefaultTrainer`` and get the config.
    * A lazy config names its model, data, optimizer and evaluator itself, so these methods are not
      called. ``dataloader.train`` is a call of ``build_detection_train_loader`` (or of
      `wsbcn_d2.data.build_train_loader`, the same under a name that fits other tasks).
    * For both, `metrics`, `use_dataset`, `check_data` and `plot_predictions`.

    The model returns a dict of losses for a batch in training mode, and whatever the evaluator
    takes in evaluation mode. It moves its inputs to its device, as detectron2's models do. A batch
    is what the loader's ``collate_fn`` makes of a list of samples; without one, the list.

    An instance is pickled for each process: it holds no open files, and its class is at the top
    level of a module. A project's script is this::

        class Classification(Task):
            metrics = ("top1", "top5")


        TASK = Classification()

        if __name__ == "__main__":
            run_command_line(TASK)

    Attributes:
        metrics: of the evaluator's results ``{task: {metric: value}}``, those in the table at the
            end of the log; the first two are drawn in ``curves.png``. Empty for all.
    """

    metrics: Sequence[str] = ()

    def add_config(self, cfg: CfgNode) -> None:
        """Add the task's keys to detectron2's default yaml config, before a file is merged."""

    def build_model(self, cfg: CfgNode) -> nn.Module:
        """The model, on ``cfg.MODEL.DEVICE``, standardized with ``MODEL.WSBCN.STANDARDIZE``."""
        from ..modeling.config import ws_options
        from ..modeling.weight_standardization import standardize_convs

        model = build_model(cfg)
        if cfg.MODEL.WSBCN.STANDARDIZE:
            standardize_convs(model, **ws_options(cfg))
        return model

    def build_optimizer(self, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """The optimizer of the model's parameters.

        Args:
            cfg: the config; detectron2's optimizers also clip by ``SOLVER.CLIP_GRADIENTS``.
            model: from `build_model`.
        """
        return build_optimizer(cfg, model)

    def build_lr_scheduler(self, cfg: CfgNode, optimizer: Optimizer) -> Any:
        """The learning-rate scheduler, stepped once an iteration.

        Args:
            cfg: the config; its ``SOLVER.WARMUP_ITERS`` is scaled under ``SOLVER.SCALE_LR``.
            optimizer: from `build_optimizer`.
        """
        return build_lr_scheduler(cfg, optimizer)

    def train_loader_arguments(self, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of ``build_detection_train_loader``: dataset, mapper, sampler and so on.

        To change one of them, hand ``mapper=…``, ``dataset=…`` (any map-style dataset) or
        ``sampler=…`` to its ``from_config``, or change the dict, to which ``collate_fn`` may be
        added. The engine makes the loader from it, at any position of any run.
        """
        return build_detection_train_loader.from_config(cfg)

    def build_test_loader(self, cfg: CfgNode, dataset_name: str) -> Any:
        """The loader of a test set; its batches go to the model and to the evaluator.

        Args:
            cfg: the config.
            dataset_name: one of ``cfg.DATASETS.TEST``.
        """
        return build_detection_test_loader(cfg, dataset_name)

    def build_evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
        """The evaluator of a test set.

        Args:
            cfg: the config.
            dataset_name: one of ``cfg.DATASETS.TEST``.
            output_dir: folder for what it writes, inside the run's.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.build_evaluator: needed to evaluate {dataset_name!r}; with no "
            "DATASETS.TEST nothing is evaluated"
        )

    def use_dataset(self, cfg: Config, opts: Sequence[str], dataset: str | None) -> list[str]:
        """Fit a config to the user's own data, before its overrides are applied.

        Args:
            cfg: of either kind; changed in place.
            opts: overrides, some of which may be about the data.
            dataset: the value of ``--dataset``; "" without; None where no data need be there.

        Returns:
            the overrides that remain to be applied.

        Raises:
            UserError: the data cannot be used, or the task takes none this way.
        """
        if dataset:
            name = type(self).__name__
            raise ConfigError(f"--dataset {dataset}: {name} takes its data from the config")
        return list(opts)

    def check_data(self, config: RunConfig, splits: Sequence[str]) -> None:
        """Look the datasets over before a run. Called on rank 0, or before ranks are started.

        Args:
            config: of the run: ``config.cfg`` is the config itself, of either kind.
            splits: ``"train"``, ``"test"`` or both.

        Raises:
            UserError: the run would fail on its data or learn from wrong labels.
        """

    def plot_predictions(self, model: nn.Module, config: RunConfig, output: str) -> None:
        """Draw predictions of the final model; it may draw nothing. Called on rank 0.

        Args:
            model: to be evaluated, on ``config.device``.
            config: of the run: ``config.cfg``, and the options ``config.options.vis``.
            output: the PNG to write.
        """


def default_task() -> Task:
    """Detection, which the engine itself does not know."""
    from ..detection import Detection

    return Detection()
