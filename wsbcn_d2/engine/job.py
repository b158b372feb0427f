"""One description of a run for both of detectron2's config kinds."""

from __future__ import annotations

import copy
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.utils.data as torchdata
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine.defaults import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..data.evaluation_loader import name_bad_images
from ..data.train_loader import TrainLoader, build_train_loader
from ..errors import ConfigError
from .batch import BatchPlan
from .config import batch_plan, dataset_names, is_lazy
from .detection import Detection
from .options import Config, Options, read_options
from .targets import build, explain_building, takes_argument
from .task import Task

__all__ = ["Job", "LazyJob", "YamlJob", "build_job"]

logger = logging.getLogger(__name__)

Results = dict[str, Any]
_INEXACT = (
    "The order of the data does not follow from the seed, as %s: a resumed run will see other "
    "images than an uninterrupted one"
)
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class Job:
    """What a run needs, whatever its config looks like: options, and builders of the parts.

    The parts are built when they are asked for: an evaluation needs no training data.

    Args:
        cfg: from `load_config`.
        device: from `resolve_device`.
        task: what is learned.

    Attributes:
        cfg: the config.
        task: what is learned.
        options: the config's `Options`.
        device: ``"cuda"``, ``"cuda:<index>"`` or ``"cpu"``.
    """

    def __init__(self, cfg: Any, device: str, task: Task) -> None:
        self.cfg = cfg
        self.task = task
        self.options: Options = read_options(cfg)
        self.device = device

    @property
    def plan(self) -> BatchPlan | None:
        """How the processes carry out a step's batch; None where the config hides it.

        Raises:
            ConfigError: they cannot share it equally.
        """
        return batch_plan(self.cfg, comm.get_world_size())

    def build_model(self) -> nn.Module:
        """The model, on its device."""
        raise NotImplementedError

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the model's parameters."""
        raise NotImplementedError

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """A torch learning-rate scheduler, or fvcore's multiplier for one."""
        raise NotImplementedError

    def build_train_loader(self, seed: int = 0, start: int = 0) -> Iterable[Any]:
        """The endless loader of this rank's micro-batches.

        Args:
            seed: of order and augmentations, equal on all ranks.
            start: position of the first sample, in images since the run began. Without
                ``exact_resume`` both mean nothing.
        """
        raise NotImplementedError

    def _scaled_warmup(self, iterations: float) -> int:
        """The warm-up's iterations for as many images as at the reference batch, logged."""
        plan, reference = self.plan, self.options.scale_lr.reference_batch_size
        if plan is None:
            return round(iterations)
        scaled = min(round(iterations * reference / plan.total), self.options.max_iter)
        logger.info(
            "scale_lr: warm-up of %d iterations × %d / %d images = %d iterations; max_iter stays "
            "%d, which is %d images (%d at the reference)",
            *(round(iterations), reference, plan.total, scaled),
            *(
                self.options.max_iter,
                self.options.max_iter * plan.total,
                self.options.max_iter * reference,
            ),
        )
        return scaled

    def _exact_loader(self, arguments: dict[str, Any], seed: int, start: int) -> TrainLoader:
        plan = self.plan
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

    def evaluations(self) -> Iterator[tuple[str, Iterable[Any], DatasetEvaluator]]:
        """Dataset name, loader and evaluator of each test set."""
        raise NotImplementedError

    def visualization(self) -> tuple[str, Mapper] | None:
        """Name of a test set and the mapper to the model's inputs; None where there is none."""
        raise NotImplementedError

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


class LazyJob(Job):
    """A `Job` from a lazy config: ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader``,
    ``train``, as detectron2's ``lazyconfig_train_net.py`` reads them.
    """

    def _build(self, key: str) -> Any:
        node = OmegaConf.select(self.cfg, key)
        if node is None:
            raise ConfigError(f"the config has no `{key}`, which this run needs")
        return build(node, key)

    def build_model(self) -> nn.Module:
        return self._build("model").to(self.device)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if "optimizer" not in self.cfg:
            raise ConfigError("the config has no `optimizer`, which this run needs")
        # The copy keeps the model out of the config.
        node = copy.deepcopy(self.cfg.optimizer)
        node.params.model = model
        return build(node, "optimizer")

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        scheduler = OmegaConf.select(self.cfg, "lr_multiplier")
        if not self.options.scale_lr.enabled or scheduler is None:
            return self._build("lr_multiplier")
        if "warmup_length" not in scheduler:
            logger.info("scale_lr: lr_multiplier has no warmup_length to scale")
            return self._build("lr_multiplier")
        scheduler = copy.deepcopy(scheduler)
        iterations = scheduler.warmup_length * self.options.max_iter
        scaled = self._scaled_warmup(iterations)
        scheduler.warmup_length = scaled / self.options.max_iter
        return build(scheduler, "lr_multiplier")

    def build_train_loader(self, seed: int = 0, start: int = 0) -> Iterable[Any]:
        name = "dataloader.train"
        node = OmegaConf.select(self.cfg, name)
        plan = self.plan
        if node is None or plan is None:
            return self._build(name)
        arguments = {key: node[key] for key in node if key != "_target_"}
        target = node["_target_"]
        target = locate(target) if isinstance(target, str) else target
        exact = self.options.exact_resume and target is build_detection_train_loader
        if exact or target is build_train_loader:
            arguments = {key: build(value, f"{name}.{key}") for key, value in arguments.items()}
            if not isinstance(arguments["dataset"], torchdata.IterableDataset):
                return self._exact_loader(arguments, seed, start)
        if self.options.exact_resume:
            logger.warning(_INEXACT, "dataloader.train is not detectron2's of a map-style dataset")
        # detectron2's word for the images of one forward on all processes.
        arguments["total_batch_size"] = plan.images_per_gpu * plan.world_size
        with explain_building(name, node):
            return target(**{key: instantiate(value) for key, value in arguments.items()})

    def evaluations(self) -> Iterator[tuple[str, Iterable[Any], DatasetEvaluator]]:
        tests = _as_list(OmegaConf.select(self.cfg, "dataloader.test"))
        evaluators = _as_list(OmegaConf.select(self.cfg, "dataloader.evaluator"))
        names = dataset_names(self.cfg, "test")
        if len(tests) != len(evaluators):
            if evaluators:
                raise ConfigError(
                    f"dataloader.test ({len(tests)}) and dataloader.evaluator ({len(evaluators)}) "
                    "must be of equal number"
                )
            return
        for i, (test, evaluator) in enumerate(zip(tests, evaluators, strict=True)):
            if takes_argument(evaluator, "output_dir") and evaluator.get("output_dir") is None:
                evaluator.output_dir = os.path.join(self.options.output_dir, "inference")
            name = names[i] if len(names) == len(tests) else f"test[{i}]"
            # The loader first: it builds a dataset whose annotations the evaluator then opens.
            loader = build(test, "dataloader.test")
            yield name, loader, build(evaluator, "dataloader.evaluator")

    def visualization(self) -> tuple[str, Mapper] | None:
        names = dataset_names(self.cfg, "test")
        tests = _as_list(OmegaConf.select(self.cfg, "dataloader.test"))
        if not names or "mapper" not in tests[0]:
            return None
        return names[0], build(tests[0].mapper, "dataloader.test.mapper")


class YamlJob(Job):
    """A `Job` from a yaml config (CfgNode), as detectron2's ``tools/train_net.py`` reads it."""

    def __init__(self, cfg: CfgNode, device: str, task: Task) -> None:
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        super().__init__(cfg, device, task)
        self.cfg = cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        cfg.freeze()
        for key, enabled in (
            ("TEST.AUG", cfg.TEST.AUG.ENABLED),
            ("TEST.PRECISE_BN", cfg.TEST.PRECISE_BN.ENABLED),
        ):
            if enabled:
                logger.warning("%s.ENABLED is set, but train_net.py does not do that", key)

    def build_model(self) -> nn.Module:
        with explain_building("MODEL"):
            return self.task.build_model(self.cfg)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        with explain_building("SOLVER"):
            return self.task.build_optimizer(self.cfg, model)

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        cfg = self.cfg.clone()
        if self.options.scale_lr.enabled:
            cfg.defrost()
            cfg.SOLVER.WARMUP_ITERS = self._scaled_warmup(cfg.SOLVER.WARMUP_ITERS)
        with explain_building("SOLVER"):
            return self.task.build_lr_scheduler(cfg, optimizer)

    def build_train_loader(self, seed: int = 0, start: int = 0) -> Iterable[Any]:
        plan = self.plan
        assert plan is not None
        with explain_building("DATALOADER"):
            arguments = self.task.train_loader_arguments(self.cfg)
        if self.options.exact_resume:
            if not isinstance(arguments["dataset"], torchdata.IterableDataset):
                return self._exact_loader(arguments, seed, start)
            logger.warning(_INEXACT, "DATASETS.TRAIN is an iterable dataset")
        # detectron2's word for the images of one forward on all processes.
        arguments["total_batch_size"] = plan.images_per_gpu * plan.world_size
        return build_detection_train_loader(**arguments)

    def evaluations(self) -> Iterator[tuple[str, Iterable[Any], DatasetEvaluator]]:
        for name in self.cfg.DATASETS.TEST:
            with explain_building("DATALOADER"):
                loader = self.task.build_test_loader(self.cfg, name)
            folder = os.path.join(self.options.output_dir, "inference")
            yield name, loader, self.task.build_evaluator(self.cfg, name, folder)

    def visualization(self) -> tuple[str, Mapper] | None:
        if not self.cfg.DATASETS.TEST:
            return None
        return self.cfg.DATASETS.TEST[0], DatasetMapper(self.cfg, is_train=False)


def build_job(cfg: Config, device: str, task: Task | None = None) -> Job:
    """The `Job` of either config kind; this project's norm names are registered first.

    Args:
        cfg: from `load_config`.
        device: from `resolve_device`.
        task: what is learned; `Detection` if None.
    """
    from ..modeling import register_norms

    register_norms()
    kind = LazyJob if is_lazy(cfg) else YamlJob
    return kind(cfg, device, task or Detection())


def _as_list(node: Any) -> list[Any]:
    if node is None:
        return []
    return [node] if isinstance(node, DictConfig) else list(node)
