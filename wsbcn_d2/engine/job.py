"""One description of a run for both of detectron2's config kinds."""

from __future__ import annotations

import copy
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine.defaults import DefaultTrainer
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from .config import Config, ConfigError, dataset_names, is_lazy, output_folder

__all__ = ["Job", "LazyJob", "YamlJob", "build_job"]

logger = logging.getLogger(__name__)

Results = dict[str, Any]
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class Job:
    """What a run needs, whatever its config looks like: options, and builders of the parts.

    The parts are built when they are asked for: an evaluation needs no training data.

    Attributes:
        device: ``"cuda"``, ``"cuda:<index>"`` or ``"cpu"``.
        output_dir: where everything is written.
        init_checkpoint: weights to start from, or "".
        max_iter: iterations in all.
        eval_period, log_period, checkpoint_period: iterations; an ``eval_period`` of 0 evaluates
            at the end only.
        max_to_keep: checkpoints kept; None keeps all.
        amp_dtype: autocast type, or None.
        clip_grad: arguments of ``clip_grad_norm_``, or None.
        ema_decay: decay of the weights' moving average, or None.
        ddp: arguments of ``create_ddp_model``.
        seed: negative for a new one each run.
        deterministic: whether torch's deterministic algorithms are asked for.
        vis_num_images, vis_score_threshold: of ``predictions.png``.
    """

    device: str
    output_dir: str
    init_checkpoint: str
    max_iter: int
    eval_period: int
    log_period: int = 20
    checkpoint_period: int
    max_to_keep: int | None = None
    amp_dtype: torch.dtype | None = None
    clip_grad: dict[str, float] | None = None
    ema_decay: float | None = None
    ddp: dict[str, Any]
    seed: int
    deterministic: bool = False
    vis_num_images: int = 8
    vis_score_threshold: float = 0.5

    def images_per_process(self) -> int | None:
        """Images that a process trains on at a time; None where the config does not say."""
        raise NotImplementedError

    def build_model(self) -> nn.Module:
        """The model, on its device."""
        raise NotImplementedError

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the model's parameters."""
        raise NotImplementedError

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """A torch learning-rate scheduler, or fvcore's multiplier for one."""
        raise NotImplementedError

    def build_train_loader(self) -> Iterable[list[dict[str, Any]]]:
        """The endless loader of training batches of this rank."""
        raise NotImplementedError

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

    Args:
        cfg: from `load_config`.
        device: from `resolve_device`.
    """

    def __init__(self, cfg: DictConfig, device: str) -> None:
        self.cfg = cfg
        train = cfg.train
        self.device = device
        self.output_dir = output_folder(cfg)
        self.init_checkpoint = train.init_checkpoint
        self.max_iter = train.max_iter
        self.eval_period = train.eval_period
        self.log_period = train.log_period
        self.checkpoint_period = train.checkpointer.period
        self.max_to_keep = train.checkpointer.get("max_to_keep")
        self.amp_dtype = _amp_dtype(train.amp.enabled, train.amp.dtype, device)
        if train.clip_grad.enabled:
            self.clip_grad = {key: train.clip_grad[key] for key in ("max_norm", "norm_type")}
        if train.ema.enabled:
            self.ema_decay = train.ema.decay
        self.ddp = dict(train.ddp)
        self.seed = train.seed
        self.deterministic = train.deterministic
        self.vis_num_images = train.vis.num_images
        self.vis_score_threshold = train.vis.score_threshold

    def images_per_process(self) -> int | None:
        total = OmegaConf.select(self.cfg, "dataloader.train.total_batch_size")
        return None if total is None else total // comm.get_world_size()

    def _build(self, key: str) -> Any:
        node = OmegaConf.select(self.cfg, key)
        if node is None:
            raise ConfigError(f"the config has no `{key}`, which this run needs")
        return instantiate(node)

    def build_model(self) -> nn.Module:
        return self._build("model").to(self.device)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if "optimizer" not in self.cfg:
            raise ConfigError("the config has no `optimizer`, which this run needs")
        # The copy keeps the model out of the config.
        node = copy.deepcopy(self.cfg.optimizer)
        node.params.model = model
        return instantiate(node)

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        return self._build("lr_multiplier")

    def build_train_loader(self) -> Iterable[list[dict[str, Any]]]:
        return self._build("dataloader.train")

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
            if _is_coco(evaluator) and evaluator.get("output_dir") is None:
                evaluator.output_dir = os.path.join(self.output_dir, "inference")
            name = names[i] if len(names) == len(tests) else f"test[{i}]"
            # The loader first: it builds a dataset whose annotations the evaluator then opens.
            loader = instantiate(test)
            yield name, loader, instantiate(evaluator)

    def visualization(self) -> tuple[str, Mapper] | None:
        names = dataset_names(self.cfg, "test")
        tests = _as_list(OmegaConf.select(self.cfg, "dataloader.test"))
        if not names or "mapper" not in tests[0]:
            return None
        return names[0], instantiate(tests[0].mapper)


class YamlJob(Job):
    """A `Job` from a yaml config (CfgNode), as detectron2's ``tools/train_net.py`` reads it.

    Args:
        cfg: from `load_config`.
        device: from `resolve_device`.
    """

    def __init__(self, cfg: CfgNode, device: str) -> None:
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()).clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        cfg.freeze()
        self.cfg = cfg
        self.device = device
        self.output_dir = output_folder(cfg)
        self.init_checkpoint = cfg.MODEL.WEIGHTS
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.eval_period = cfg.TEST.EVAL_PERIOD
        self.checkpoint_period = cfg.SOLVER.CHECKPOINT_PERIOD
        self.amp_dtype = _amp_dtype(cfg.SOLVER.AMP.ENABLED, "float16", device)
        if cfg.SOLVER.EMA.ENABLED:
            self.ema_decay = cfg.SOLVER.EMA.DECAY
        self.ddp = {"broadcast_buffers": False}
        self.seed = cfg.SEED
        for key, enabled in (
            ("TEST.AUG", cfg.TEST.AUG.ENABLED),
            ("TEST.PRECISE_BN", cfg.TEST.PRECISE_BN.ENABLED),
        ):
            if enabled:
                logger.warning("%s.ENABLED is set, but train_net.py does not do that", key)

    def images_per_process(self) -> int | None:
        return self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()

    def build_model(self) -> nn.Module:
        from ..modeling.config import ws_options
        from ..modeling.weight_standardization import standardize_convs

        model = build_model(self.cfg)
        if self.cfg.MODEL.WSBCN.STANDARDIZE:
            standardize_convs(model, **ws_options(self.cfg))
        return model

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        # Clips gradients itself, with SOLVER.CLIP_GRADIENTS.
        return build_optimizer(self.cfg, model)

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(self.cfg, optimizer)

    def build_train_loader(self) -> Iterable[list[dict[str, Any]]]:
        return build_detection_train_loader(self.cfg)

    def evaluations(self) -> Iterator[tuple[str, Iterable[Any], DatasetEvaluator]]:
        for name in self.cfg.DATASETS.TEST:
            loader = build_detection_test_loader(self.cfg, name)
            yield name, loader, self._evaluator(name)

    def _evaluator(self, name: str) -> DatasetEvaluator:
        folder = os.path.join(self.output_dir, "inference")
        kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
        if kind == "coco":
            return COCOEvaluator(name, output_dir=folder)
        if kind == "lvis":
            return LVISEvaluator(name, output_dir=folder)
        if kind == "pascal_voc":
            return PascalVOCDetectionEvaluator(name)
        raise ConfigError(
            f"evaluator_type {kind!r} of dataset {name!r}: a yaml config evaluates coco, lvis "
            "or pascal_voc; use a lazy config, which names its evaluator"
        )

    def visualization(self) -> tuple[str, Mapper] | None:
        if not self.cfg.DATASETS.TEST:
            return None
        return self.cfg.DATASETS.TEST[0], DatasetMapper(self.cfg, is_train=False)


def build_job(cfg: Config, device: str) -> Job:
    """The `Job` of either config kind; this project's norm names are registered first."""
    from ..modeling import register_norms

    register_norms()
    return LazyJob(cfg, device) if is_lazy(cfg) else YamlJob(cfg, device)


def _amp_dtype(enabled: bool, name: str, device: str) -> torch.dtype | None:
    types = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in types:
        raise ConfigError(f"train.amp.dtype ({name!r}) must be one of {', '.join(types)}")
    if not enabled:
        return None
    # CPUs have few float16 operators, and bfloat16 needs no loss scaling.
    return torch.bfloat16 if device == "cpu" else types[name]


def _as_list(node: Any) -> list[Any]:
    if node is None:
        return []
    return [node] if isinstance(node, DictConfig) else list(node)


def _is_coco(node: DictConfig) -> bool:
    target = node.get("_target_")
    return target is COCOEvaluator or str(target).endswith(".COCOEvaluator")
