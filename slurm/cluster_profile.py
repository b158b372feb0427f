"""What a cluster wants to know about a job, from slurm/clusters/*.yaml and the command line."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Profile", "ProfileError", "add_arguments", "load_profile", "parse_minutes"]

CLUSTERS = Path(__file__).resolve().parent / "clusters"


class ProfileError(ValueError):
    """Something in a profile, or its options, that the user can put right; one clear message."""


def _option(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Profile:
    """Resources of a job, and the way to start it. Every field is a key and an option.

    Raises:
        ProfileError: numbers that make no sense.
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
        for name in ("nodes", "cpus_per_task", "grace", "rendezvous_timeout"):
            self._check(name, 1)
        for name in ("gpus_per_node", "max_requeues", "node_failure_wait"):
            self._check(name, 0)
        self._check("tasks_per_node", 1)
        self._check("min_nodes", 1)
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ProfileError(f"min_nodes ({self.min_nodes}) must not exceed nodes ({self.nodes})")
        if self.tasks_per_node and self.gpus_per_node not in (0, self.tasks_per_node):
            raise ProfileError(
                f"tasks_per_node ({self.tasks_per_node}) must equal gpus_per_node "
                f"({self.gpus_per_node}): each process uses one GPU"
            )
        if self.grace >= 60 * self.minutes:
            raise ProfileError(
                f"grace ({self.grace} seconds) must be shorter than time ({self.minutes} minutes)"
            )

    def _check(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise ProfileError(f"{name} ({value}) must be at least {least}")

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
        ProfileError: another notation, or no time at all.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise ProfileError(
            f"time ({text!r}) must be minutes, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"
        )
    days, *rest = (int(group) if group else None for group in match.groups())
    first, second, third = rest
    assert first is not None
    if days is None and second is None:
        seconds = 60 * first
    elif days is None and third is None:  # minutes:seconds
        seconds = 60 * first + (second or 0)
    else:
        seconds = 86400 * (days or 0) + 3600 * first + 60 * (second or 0) + (third or 0)
    if seconds == 0:
        raise ProfileError(f"time ({text!r}) must not be zero")
    return -(-seconds // 60)


def load_profile(cluster: str | None, options: Mapping[str, Any]) -> Profile:
    """A profile, with fields replaced.

    Args:
        cluster: name of a file in slurm/clusters/, or a path; None for the defaults.
        options: fields to replace, as `add_arguments` names them; None keeps what the profile
            says. Lists and dicts are added to the profile's.

    Raises:
        ProfileError: no such profile, unknown fields, or wrong values.
    """
    values = {} if cluster is None else _read(_find(cluster))
    for name, value in options.items():
        if isinstance(value, list):
            value = [*values.get(name, []), *value]
        elif isinstance(value, dict):
            value = {**values.get(name, {}), **value}
        if value is not None:
            values[name] = value
    return replace(Profile(), **values)


def _find(cluster: str) -> Path:
    for path in (Path(cluster), CLUSTERS / f"{cluster}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in CLUSTERS.glob("*.yaml"))
    raise ProfileError(f"--cluster {cluster!r} is no file, and not one of: {', '.join(known)}")


def _read(path: Path) -> dict[str, Any]:
    # BaseLoader leaves scalars alone: in YAML 1.1, 12:00:00 is the number 43200.
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ProfileError(f"{path}: {' '.join(str(error).split())}") from error
    content = content or {}
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: must be `field: value` lines")
    known = {each.name: each for each in fields(Profile)}
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ProfileError(
                f"{path}: unknown field {name!r}{hint} (fields: {', '.join(sorted(known))})"
            )
    # An empty value is a field left out.
    return {
        name: _convert(known[name], value, str(path))
        for name, value in content.items()
        if value not in ("", "null", "~")
    }


def _convert(wanted: Field[Any], value: Any, where: str) -> Any:
    kind = _kind(wanted)
    if kind is not str and kind is not int and isinstance(value, kind):
        return value
    if kind is int and isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    if kind is str and isinstance(value, str):
        return value
    words = {int: "a whole number", str: "one value", list: "a list", dict: "NAME: VALUE lines"}
    raise ProfileError(f"{where}: {wanted.name} ({value!r}) must be {words[kind]}")


def _kind(wanted: Field[Any]) -> type:
    annotation = str(wanted.type)
    return next(k for k in (list, dict, int, str) if annotation.startswith(k.__name__))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each field; they default to None, "as the profile says"."""
    group = parser.add_argument_group("resources: fields of a cluster profile")
    for each in fields(Profile):
        kind = _kind(each)
        text = each.metadata["help"]
        if each.default not in (MISSING, None):
            text += f" (default: {each.default})"
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "dest": each.name}
        if kind is list:
            options.update(action="append", metavar="WORDS")
        elif kind is dict:
            options.update(action=_Pairs, metavar="NAME=VALUE")
        else:
            options.update(type=kind, metavar="N" if kind is int else "TEXT")
        group.add_argument(f"--{each.name.replace('_', '-')}", **options)


class _Pairs(argparse.Action):
    """Collects NAME=VALUE arguments in a dict."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        name, sign, value = str(values).partition("=")
        if not sign or not name:
            parser.error(f"{option_string} {values}: must be NAME=VALUE")
        pairs = getattr(namespace, self.dest) or {}
        setattr(namespace, self.dest, {**pairs, name: value})
