"""What is known to go wrong with a config's norms, looked for before it is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from detectron2.utils import comm
from torch import nn

from ..checkpoint import describe_norms
from ..config import BatchPlan, RunConfig
from ..errors import ConfigError, UserError, did_you_mean
from ..modeling.norm_registry import NORMS

__all__ = [
    "CHECKS",
    "Advice",
    "Found",
    "Setting",
    "check",
    "give_advice",
    "look_for_advice",
    "report_advice",
]

logger = logging.getLogger(__name__)

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True)
class Advice:
    """What one check found.

    Attributes:
        name: of the check, by which ``train.silence`` turns it off.
        severity: ``"error"`` where nothing can be learned, ``"warning"`` where results are known to
            suffer, ``"note"`` where they may.
        key: the config's, to be changed.
        reason: what is wrong and who found it.
        change: what to do.
    """

    name: str
    severity: Severity
    key: str
    reason: str
    change: str

    def __str__(self) -> str:
        return (
            f"{self.severity}: {self.name} ({self.key})\n"
            f"    {self.reason}\n"
            f"    Change: {self.change}."
        )


@dataclass
class Setting:
    """What the checks look at.

    Attributes:
        config: of the run.
        model: its model, before any weights are loaded; it may be on the meta device.
        plan: its batch; None where the config hides it.
        norms: kind of each norm by module name, as `describe_norms` has it.
    """

    config: RunConfig
    model: nn.Module
    plan: BatchPlan | None
    norms: dict[str, str]

    def kinds_over(self, *statistics: str) -> list[str]:
        """The kinds of the model's norms with such training statistics, as `Norm.statistics`."""
        kinds = dict.fromkeys(self.norms.values())
        return [kind for kind in kinds if NORMS[kind].statistics in statistics]

    def trained_norms(self, *kinds: str) -> list[str]:
        """Names of the norms of these kinds that are not frozen."""
        modules = dict(self.model.named_modules())
        return [
            name
            for name, kind in self.norms.items()
            if kind in kinds and any(p.requires_grad for p in modules[name].parameters())
        ]


# Key, reason and change, and a severity where it is not the check's.
Found = tuple[str, str, str] | tuple[str, str, str, Severity]
Check = Callable[[Setting], Iterator[Found]]
CHECKS: dict[str, tuple[Severity, Check]] = {}


def check(name: str, severity: Severity) -> Callable[[Check], Check]:
    """Register a check: a function that yields the key, the reason and the change of what it finds.

    Args:
        name: of the check.
        severity: of what it finds.
    """

    def register(function: Check) -> Check:
        CHECKS[name] = (severity, function)
        return function

    return register


def look_for_advice(config: RunConfig, model: nn.Module) -> list[Advice]:
    """Run all checks that the config does not silence, errors first.

    Args:
        config: of the run.
        model: its model, before any weights are loaded.

    Raises:
        ConfigError: ``train.silence`` has a name that no check has.
    """
    silenced = config.options.silence
    for name in silenced:
        if name not in CHECKS:
            raise ConfigError(
                f"{config.key('silence')}: no check {name!r}; {did_you_mean(name, CHECKS)}"
            )
    setting = Setting(config, model, config.batch_plan(), describe_norms(model)["norms"])
    found = [
        Advice(name, each[3] if len(each) == 4 else severity, *each[:3])
        for name, (severity, function) in CHECKS.items()
        if name not in silenced
        for each in function(setting)
    ]
    return sorted(found, key=lambda advice: ("error", "warning", "note").index(advice.severity))


def give_advice(config: RunConfig, model: nn.Module) -> None:
    """Log what the checks found, before a training starts. All ranks call it.

    Args:
        config: of the run.
        model: its model, before any weights are loaded.

    Raises:
        UserError: one of them is an error.
    """
    advice = _without_errors(config, model)
    if advice and comm.is_main_process():
        log = logger.warning if advice[0].severity == "warning" else logger.info
        log("The config was looked over:\n  %s", _describe(advice, config))


def report_advice(config: RunConfig) -> str:
    """What the checks find, for ``train_net.py --check``.

    Args:
        config: of the run.

    Raises:
        UserError: one of them is an error.
    """
    advice = _without_errors(config, config.build_model("cpu"))
    silenced = config.options.silence
    lines = [f"{len(CHECKS) - len(silenced)} checks, {len(advice)} finding(s)"]
    if advice:
        lines.append(_describe(advice, config))
    if silenced:
        lines.append(f"Silenced by the config: {', '.join(silenced)}")
    return "\n  ".join(lines)


def _without_errors(config: RunConfig, model: nn.Module) -> list[Advice]:
    advice = look_for_advice(config, model)
    errors = [each for each in advice if each.severity == "error"]
    if errors:
        raise UserError(_describe(errors, config))
    return advice


def _describe(advice: Sequence[Advice], config: RunConfig) -> str:
    """All advice as text, with how to turn it off."""
    names = list(dict.fromkeys(each.name for each in advice))
    off = f"[{','.join(names)}]" if config.lazy else f'"{tuple(names)}"'
    equals = "=" if config.lazy else " "
    off = f"{config.key('silence')}{equals}{off}"
    return "\n  ".join([*map(str, advice), f"To go on without a check, silence it by name: {off}"])
