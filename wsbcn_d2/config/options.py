"""The options of a run: the type and range of each key of ``train``."""

# Without "from __future__ import annotations": the annotations hold the rules, and are evaluated.
import dataclasses
import functools
import inspect
import math
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias, get_type_hints

import torch
from detectron2.config import CfgNode
from omegaconf import DictConfig
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, did_you_mean
from ..recipes import get_config

__all__ = ["Config", "Options", "default_options", "read_options"]

Config: TypeAlias = "CfgNode | DictConfig"


@dataclass(frozen=True)
class Rule:
    """The values that an option accepts.

    Attributes:
        allowed: description of the values, which follows "must be" in a message.
        fits: returns whether a value is accepted.
    """

    allowed: str
    fits: Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(*names: str) -> Rule:
    return Rule(" or ".join(map(repr, names)), lambda value: value in names)


def _are_ddp_arguments(value: Any) -> bool:
    parameters = inspect.signature(DistributedDataParallel).parameters
    flags = {key for key, p in parameters.items() if isinstance(p.default, bool)}
    # The first has another default in newer versions of torch, the second is detectron2's own.
    flags |= {"broadcast_buffers", "fp16_compression"}
    return isinstance(value, dict) and all(
        isinstance(argument, bool) if key in flags else key in parameters
        for key, argument in value.items()
    )


# The last two cannot be caught.
_SIGNALS = [s.name for s in signal.Signals if s.name not in ("SIGKILL", "SIGSTOP")]

_Text = Annotated[str, Rule("a string", lambda v: isinstance(v, str))]
_Path = Annotated[str, Rule("a path", lambda v: isinstance(v, str) and bool(v))]
_Flag = Annotated[bool, Rule("True or False", lambda v: isinstance(v, bool))]
_Positive = Annotated[int, Rule("a whole number, 1 or more", lambda v: _is_int(v) and v >= 1)]
_Natural = Annotated[int, Rule("a whole number, 0 or more", lambda v: _is_int(v) and v >= 0)]
_Above0 = Annotated[float, Rule("a number above 0", lambda v: _is_number(v) and v > 0)]
_Share = Annotated[float, Rule("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)]


@dataclass(frozen=True)
class ScaleLR:
    enabled: _Flag
    reference_batch_size: _Positive


@dataclass(frozen=True)
class Resume:
    new_hyperparameters: _Flag
    other_model: _Flag


@dataclass(frozen=True)
class BadData:
    action: Annotated[str, _one_of("error", "skip")]
    max_share: _Share


@dataclass(frozen=True)
class AMP:
    enabled: _Flag
    dtype: Annotated[str, _one_of("float16", "bfloat16")]

    def autocast_dtype(self, device: str) -> torch.dtype | None:
        """The type for autocast on a device, or None."""
        if not self.enabled:
            return None
        # CPUs have few float16 operators, and bfloat16 needs no loss scaling.
        return torch.bfloat16 if device == "cpu" else getattr(torch, self.dtype)


@dataclass(frozen=True)
class ClipGrad:
    enabled: _Flag
    max_norm: Annotated[
        float, Rule("a finite number above 0", lambda v: _is_number(v) and 0 < v < math.inf)
    ]
    norm_type: _Above0

    def arguments(self) -> dict[str, float] | None:
        """The arguments of ``clip_grad_norm_``, or None."""
        if not self.enabled:
            return None
        return {"max_norm": self.max_norm, "norm_type": self.norm_type}


@dataclass(frozen=True)
class EMA:
    enabled: _Flag
    decay: Annotated[float, Rule("from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1)]


@dataclass(frozen=True)
class Checkpointer:
    period: _Natural
    max_to_keep: Annotated[
        int | None,
        Rule(
            "a whole number, 1 or more, or None (all)",
            lambda v: v is None or (_is_int(v) and v > 0),
        ),
    ]


@dataclass(frozen=True)
class Vis:
    num_images: _Natural
    score_threshold: _Share


@dataclass(frozen=True)
class Options:
    """The options of a run, under the keys of ``train`` in lazy configs.

    ``configs/common/train.py`` documents them and has their defaults.
    """

    output_dir: _Path
    init_checkpoint: _Text
    pretrained: _Text
    protocol: _Text
    max_iter: _Positive
    epochs: Annotated[
        float, Rule("a finite number, 0 or more", lambda v: _is_number(v) and 0 <= v < math.inf)
    ]
    min_iter: _Natural
    images_per_gpu: _Natural
    scale_lr: ScaleLR
    correct_momentum: _Flag
    exact_resume: _Flag
    resume: Resume
    bad_data: BadData
    stop_signals: Annotated[
        list[str],
        Rule(
            "a list of signals that can be caught, such as SIGUSR2 or SIGTERM",
            lambda v: isinstance(v, (list, tuple)) and all(name in _SIGNALS for name in v),
        ),
    ]
    ssn_full_at: Annotated[
        float, Rule("above 0 and at most 1", lambda v: _is_number(v) and 0 < v <= 1)
    ]
    batch_average_iters: _Natural
    amp: AMP
    ddp: Annotated[
        dict[str, Any],
        Rule(
            "arguments of DistributedDataParallel, or fp16_compression (True or False)",
            _are_ddp_arguments,
        ),
    ]
    sync_group_size: Annotated[
        int | str,
        Rule(
            "a number of processes, 0 for all, or 'node' for those of a machine",
            lambda v: v == "node" or (_is_int(v) and v >= 0),
        ),
    ]
    clip_grad: ClipGrad
    ema: EMA
    checkpointer: Checkpointer
    eval_period: _Natural
    log_period: _Positive
    device: Annotated[
        str,
        Rule(
            "'auto', 'cpu', 'cuda' or 'cuda:<index>'",
            lambda v: isinstance(v, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", v) is not None,
        ),
    ]
    # NumPy's generator ends at 2**32; ranks and iterations are added to the seed.
    seed: Annotated[
        int,
        Rule(
            "a whole number below 2**31; a negative one is a new seed each run",
            lambda v: _is_int(v) and v < 2**31,
        ),
    ]
    silence: Annotated[
        list[str],
        Rule(
            "a list of names of checks",
            lambda v: isinstance(v, (list, tuple)) and all(isinstance(name, str) for name in v),
        ),
    ]
    deterministic: _Flag
    cudnn_benchmark: _Flag
    vis: Vis

    def signal_numbers(self) -> list[int]:
        """The numbers of ``stop_signals``."""
        return [int(signal.Signals[name]) for name in self.stop_signals]


@functools.cache
def default_options() -> DictConfig:
    """The defaults of `Options`, which are not to be changed: the file is read once."""
    return get_config("common/train").train


def read_options(values: Any, names: Mapping[str, str] = MappingProxyType({})) -> Options:
    """Check a run's options.

    Args:
        values: nested dicts with the keys of `Options`.
        names: names of options in messages, by key (``"ema.decay"``); the default is the key with
            a prefix of ``train.``.

    Raises:
        ConfigError: options that do not exist, or have a value of the wrong type or out of range;
            all of them are listed in one message.
    """
    wrong: list[str] = []
    options = _read(Options, values, "", names, wrong)
    if wrong:
        raise ConfigError("\n  ".join(wrong))
    return options


def _read(kind: Any, values: Any, prefix: str, names: Mapping[str, str], wrong: list[str]) -> Any:
    """An instance of the dataclass ``kind``; what is not allowed is appended to ``wrong``."""
    rules = get_type_hints(kind, include_extras=True)
    if not isinstance(values, dict):
        key = f"train.{prefix}".rstrip(".")
        wrong.append(f"{key} ({values!r}) must hold the options {', '.join(rules)}")
        return None
    for key in values:
        if key not in rules:
            wrong.append(f"train.{prefix}{key}: no such option; {did_you_mean(key, rules)}")
    found = {}
    for key, hint in rules.items():
        path = f"{prefix}{key}"
        name = names.get(path, f"train.{path}")
        if key not in values:
            wrong.append(f"{name} is missing")
        elif dataclasses.is_dataclass(hint):
            found[key] = _read(hint, values[key], f"{path}.", names, wrong)
        else:
            found[key] = values[key]
            rule = hint.__metadata__[0]
            if not rule.fits(values[key]):
                wrong.append(f"{name} ({values[key]!r}) must be {rule.allowed}")
    return None if wrong else kind(**found)
