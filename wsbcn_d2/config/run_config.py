"""A run's config, of either of detectron2's kinds: its options, and how to build its parts."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from ..data.evaluation_loader import name_bad_images
from ..data.train_loader import TrainLoader, build_train_loader
from ..errors import ConfigError
from .batch import BatchPlan, plan_batch
from .options import Options, read_options
from .task import Task

__all__ = ["Mapper", "Results", "RunConfig", "without_values"]

logger = logging.getLogger(__name__)

Results = dict[str, Any]
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class RunConfig(ABC):
    """The options of a run and the builders of its parts; returned by `read_config`.

    Parts are built on request only: an evaluation does not need the training data.

    Args:
        cfg: from `load_config`.
        task: the task of the run.
        world_size: number of processes.
        opts: overrides of the command line; a GPU that they ask for has to exist.

    Attributes:
        cfg: the config.
        task: the task of the run.
        world_size: number of processes.
        options: the config's `Options`.
        device: ``"cuda"``, ``"cuda:<index>"`` or ``"cpu"``.
        lazy: whether ``cfg`` is a lazy config, and otherwise a yaml one.

    Raises:
        ConfigError: options that are not allowed, or no GPU for the device in ``opts``.
    """

    lazy: bool
    # Names of the keys in messages; those of options that are not listed start with ``train.``.
    option_keys: Mapping[str, str] = {}
    batch_key: str
    test_key: str
    optimizer_key: str

    def __init__(self, cfg: Any, task: Task, world_size: int, opts: Sequence[str] = ()) -> None:
        self.cfg = cfg
        self.task = task
        self.world_size = world_size
        self.options: Options = read_options(self._option_values(), self.option_keys)
        self.device = self._resolve_device(opts)

    @abstractmethod
    def _option_values(self) -> Any:
        """The values of `Options`, as nested dicts."""

    def _resolve_device(self, opts: Sequence[str]) -> str:
        device = self.options.device
        if device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            # Detectron2's default is "cuda", which is then nobody's wish.
            key = self.key("device")
            if any(opt.partition("=")[0] == key for opt in opts):
                raise ConfigError(f"{key} is {device!r}, but torch finds no GPU; use cpu or auto")
            return "cpu"
        return device

    def key(self, option: str) -> str:
        """The config's key of an option: ``"ema.decay"`` → ``"train.ema.decay"``."""
        return self.option_keys.get(option, f"train.{option}")

    @abstractmethod
    def override(self, option: str, value: Any) -> list[str]:
        """Command-line words that set an option.

        Args:
            option: such as ``"output_dir"``.
            value: a string, number or path.
        """

    def batch_plan(self) -> BatchPlan | None:
        """How the processes divide the batch of a step; None if the config does not tell its size.

        Raises:
            ConfigError: they cannot share it equally.
        """
        total, images_per_gpu = self._total_batch_size(), self.options.images_per_gpu
        names = (self.batch_key, self.key("images_per_gpu"))
        if total is not None:
            return plan_batch(total, images_per_gpu, self.world_size, names)
        if images_per_gpu:
            raise ConfigError(f"{names[1]} ({images_per_gpu}) needs a {names[0]}, which is missing")
        return None

    @abstractmethod
    def _total_batch_size(self) -> int | None: ...

    @abstractmethod
    def count_epochs(self) -> None:
        """Set ``max_iter`` from ``train.epochs`` and the size of the training data.

        Errors of loading the data are left to the checks.
        """

    @abstractmethod
    def dataset_names(self, split: str) -> list[str]:
        """Names of the ``"train"`` or ``"test"`` datasets; empty if a lazy config has none."""

    @abstractmethod
    def check_parts(self, training: bool) -> None:
        """Check the parts as far as possible without building them.

        Args:
            training: whether the run trains, and does not only evaluate.

        Raises:
            ConfigError: such as an argument that a call does not take.
        """

    @abstractmethod
    def build_model(self, device: str | None = None) -> nn.Module:
        """The model, on the run's device; with ``"meta"``, its parameters have no values."""

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the model's parameters."""

    @abstractmethod
    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """A torch learning-rate scheduler, or fvcore's multiplier for one."""

    @abstractmethod
    def build_train_loader(self, seed: int = 0, start: int = 0) -> Iterable[Any]:
        """The endless loader of this rank's micro-batches.

        Args:
            seed: of order and augmentations, equal on all ranks.
            start: position of the first sample, in images since the run began. Without
                ``exact_resume`` both mean nothing.
        """

    @abstractmethod
    def evaluations(self) -> Iterator[tuple[str, Iterable[Any], DatasetEvaluator]]:
        """Dataset name, loader and evaluator of each test set."""

    @abstractmethod
    def first_test_set(self) -> tuple[str, Mapper] | None:
        """Its name, and the mapper to the model's inputs; None where there is none."""

    def evaluate(self, model: nn.Module) -> Results:
        """Evaluate a model (not wrapped) on every test set. All ranks must call it.

        Returns:
            task → metric → value on rank 0 (dataset → task → … with several test sets), and an
            empty dict elsewhere.
        """
        results: Results = OrderedDict()
        for name, loader, evaluator in self.evaluations():
            name_bad_images(loader)
            result = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(result)
                results[name] = result
        if len(results) == 1:
            return next(iter(results.values()))
        return results

    def _scaled_warmup(self, iterations: float) -> int:
        """The warm-up's iterations for as many images as at the reference batch, logged."""
        plan, reference = self.batch_plan(), self.options.scale_lr.reference_batch_size
        if plan is None:
            return round(iterations)
        max_iter = self.options.max_iter
        scaled = min(round(iterations * reference / plan.total), max_iter)
        logger.info(
            "scale_lr: warm-up of %d iterations × %d / %d images = %d iterations; max_iter stays "
            "%d, which is %d images (%d at the reference)",
            *(round(iterations), reference, plan.total, scaled),
            *(max_iter, max_iter * plan.total, max_iter * reference),
        )
        return scaled

    def _exact_loader(self, arguments: dict[str, Any], seed: int, start: int) -> TrainLoader:
        plan = self.batch_plan()
        assert plan is not None
        try:
            return build_train_loader(
                **arguments,
                images_per_gpu=plan.images_per_gpu,
                run_seed=seed,
                start=start,
                skip_bad=self.options.bad_data.action == "skip",
                max_bad_share=self.options.bad_data.max_share,
            )
        except ValueError as error:
            raise ConfigError(f"training data: {error}") from error

    def _warn_inexact(self, reason: str) -> None:
        logger.warning(
            "The order of the data does not follow from the seed, as %s: a resumed run will see "
            "other images than an uninterrupted one",
            reason,
        )


def without_values(device: str | None) -> AbstractContextManager[Any]:
    """A context in which a model for the device ``"meta"`` is built there, without memory."""
    return torch.device("meta") if device == "meta" else nullcontext()
