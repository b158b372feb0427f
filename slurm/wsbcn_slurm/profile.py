"""What a cluster wants to know about a job, from slurm/clusters/*.yaml and the command line."""

from __future__ import annotations

import argparse
import operator
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wsbcn_d2.errors import ConfigError, did_you_mean

__all__ = ["CLUSTERS", "Profile", "add_arguments", "make_profile", "parse_minutes"]

CLUSTERS = Path(__file__).resolve().parents[1] / "clusters"

_MAY_BE_ZERO = ("gpus_per_node", "max_requeues", "node_failure_wait")


def _option(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class Profile:
    """Resources of a job, and the way to start it. Every field is a key and an option.

    Raises:
        ConfigError: numbers that make no sense.
    """

    partition: str | None = _option("partition (queue)")
    account: str | None = _option("account to charge")
    qos: str | None = _option("quality of service")
    constraint: str | None = _option("features that the nodes must have")
    nodes: int = _option("nodes", 1)
    min_nodes: int | None = _option(
        "after a node failure go on with as few nodes as this; default: `nodes`, and the job is "
        "held in the queue until there are so many again"
    )
    gpus_per_node: int = _option("GPUs, and with them processes, per node", 0)
    tasks_per_node: int | None = _option("processes per node; default: gpus_per_node, or 1")
    cpus_per_task: int = _option("CPU cores per process, for it and its data loader workers", 4)
    mem: str | None = _option("memory per node, such as 120G; 0 is all of it")
    time: str = _option("time limit: minutes, HH:MM:SS or D-HH:MM:SS", "1-00:00:00")
    grace: int = _option(
        "seconds before the time limit or a preemption's end at which the job is told to stop; a "
        "step and a checkpoint must fit into it",
        300,
    )
    max_requeues: int = _option("times that the job may be started again", 20)
    node_failure_wait: int = _option(
        "seconds to wait, when a process is gone without a word, for SLURM to find its node down "
        "and requeue the job; more than SLURM's SlurmdTimeout",
        360,
    )
    rendezvous_timeout: int = _option("seconds within which all processes must have met", 300)
    setup: list[str] = field(
        default_factory=list, metadata={"help": "shell command for the node, such as module load …"}
    )
    python: str | None = _option(
        "shell command that runs Python on the nodes, such as apptainer exec --nv image.sif "
        "python; default: the Python that runs this"
    )
    env: dict[str, str] = field(
        default_factory=dict, metadata={"help": "environment variable of the job, NAME=VALUE"}
    )
    srun_args: list[str] = field(
        default_factory=list, metadata={"help": "argument for srun, such as --container-image=…"}
    )
    sbatch: dict[str, str] = field(
        default_factory=dict, metadata={"help": "other option of sbatch, NAME=VALUE without dashes"}
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name in _MAY_BE_ZERO else 1
            if isinstance(value, int) and value < least:
                raise ConfigError(f"{each.name} ({value}) must be at least {least}")
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ConfigError(f"min_nodes ({self.min_nodes}) must not exceed nodes ({self.nodes})")
        if self.tasks_per_node and self.gpus_per_node not in (0, self.tasks_per_node):
            raise ConfigError(
                f"tasks_per_node ({self.tasks_per_node}) must equal gpus_per_node "
                f"({self.gpus_per_node}): each process uses one GPU"
            )
        if self.grace >= 60 * self.minutes:
            raise ConfigError(
                f"grace ({self.grace} seconds) must be shorter than time ({self.minutes} minutes)"
            )

    @property
    def tasks(self) -> int:
        """Processes per node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def minutes(self) -> int:
        """The time limit."""
        return parse_minutes(self.time)

    @property
    def node_counts(self) -> range:
        """With how many nodes the job may run."""
        return range(self.min_nodes or self.nodes, self.nodes + 1)


def parse_minutes(text: str) -> int:
    """Minutes of a time limit in SLURM's notation, rounded up.

    Raises:
        ConfigError: another notation, or no time at all.
    """
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", text.strip()):
        raise ConfigError(f"time ({text!r}) must be minutes, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS")
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    seconds = 86400 * int(days or 0) + sum(map(operator.mul, units, parts))
    if seconds == 0:
        raise ConfigError(f"time ({text!r}) must not be zero")
    return -(-seconds // 60)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of a profile; its default is None, for what the profile says."""
    group = parser.add_argument_group("resources: fields of a cluster profile")
    for each in fields(Profile):
        kind = str(each.type)
        text = each.metadata["help"]
        if each.default not in (MISSING, None):
            text += f" (default: {each.default})"
        options: dict[str, Any] = {"metavar": "TEXT"}
        if kind.startswith("list"):
            options = {"metavar": "WORDS", "action": "append"}
        elif kind.startswith("dict"):
            options = {"metavar": "NAME=VALUE", "action": "append", "type": _pair}
        elif "int" in kind:
            options = {"metavar": "N", "type": int}
        name = f"--{each.name.replace('_', '-')}"
        group.add_argument(name, help=text.replace("%", "%%"), dest=each.name, **options)


def make_profile(args: argparse.Namespace) -> Profile:
    """The profile of a parsed command line, which replaces scalars of ``--cluster`` and adds to it.

    Args:
        args: ``cluster``, the name of a file in slurm/clusters/ or a path, if any; and the options
            of `add_arguments`.

    Raises:
        ConfigError: no such profile, unknown fields, wrong values, or numbers that make no sense.
    """
    profile = _read_profile(args.cluster) if args.cluster else OmegaConf.structured(Profile)
    for each in fields(Profile):
        value = getattr(args, each.name)
        if isinstance(value, list):
            old = profile[each.name]
            value = {**old, **dict(value)} if isinstance(old, DictConfig) else [*old, *value]
        if value is not None:
            profile[each.name] = value
    made = OmegaConf.to_object(profile)
    assert isinstance(made, Profile)
    return made


def _read_profile(cluster: str) -> DictConfig:
    files = (Path(cluster), CLUSTERS / f"{cluster}.yaml")
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        names = ", ".join(sorted(path.stem for path in CLUSTERS.glob("*.yaml")))
        raise ConfigError(f"--cluster {cluster!r} is no file, and not one of: {names}")
    try:
        # BaseLoader leaves scalars alone: in YAML 1.1, 12:00:00 is the number 43200.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be `field: value` lines")
    profile = OmegaConf.structured(Profile)
    for name, value in content.items():
        if name not in profile:
            raise ConfigError(f"{path}: unknown field {name!r}; {did_you_mean(name, profile)}")
        if value in ("", "null", "~"):
            continue  # a field left out
        try:
            profile[name] = value
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{path}: {name} ({value!r}): {reason}") from error
    return profile


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    return name, value
