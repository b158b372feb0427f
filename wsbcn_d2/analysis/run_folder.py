"""What a run left in its output folder, for people to read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from omegaconf import OmegaConf

from ..config.record import flatten_config
from ..errors import UserError
from .curves import Curve, read_metrics

__all__ = ["RunFolder", "distinct_names", "read_run"]

# As detectron2 and this project log them; the last one counts, which is of the run's last part.
_OF_THE_LOG = {
    "batch": r"INFO: (\d+ images an optimizer step = .*)",
    "command": r"Command line arguments: Namespace\((.*)\)",
    "commit": r"INFO: wsbcn_d2 (\S+, commit \S+)",
    "inference (s an image and device)": r"pure compute time: \S+ \((\d+\.\d{1,4})\d* s / iter",
    "GPU memory (MiB, most)": r"max_mem: (\d+)M",
}


@dataclass
class RunFolder:
    """A run as its folder describes it.

    Attributes:
        name: what to call it.
        path: the folder.
        config: from `flatten_config`; empty where there is no ``config.yaml``.
        curves: from `read_metrics`.
        evaluations: by name (``"bbox/AP"``), the last iteration that has one and its value.
        logged: what ``log.txt`` says of batch, commit, speed and memory; "–" where it does not.
        environment: detectron2's ``collect_env_info``, by key.
    """

    name: str
    path: Path
    config: dict[str, str]
    curves: dict[str, Curve]
    evaluations: dict[str, tuple[int, float]]
    logged: dict[str, str]
    environment: dict[str, str]

    def speed(self) -> dict[str, str]:
        """Time and memory, by name with its unit; "–" where nothing was recorded."""
        found = {}
        for key, title in (("time", "step (s, median)"), ("data_time", "waiting for data (s)")):
            values = self.curves[key][1] if key in self.curves else []
            found[title] = f"{median(values):.3f}" if values else "–"
        memory = {key: value for key, value in self.logged.items() if "(" in key}
        return {"iterations": f"{self.iterations:,}", **found, **memory}

    @property
    def iterations(self) -> int:
        """How many were done."""
        return max((iterations[-1] for iterations, _ in self.curves.values()), default=0)


def read_run(path: Path, name: str = "") -> RunFolder:
    """Read a run's output folder.

    Args:
        path: the folder; it has a ``metrics.json``, and the other files may be missing.
        name: what to call the run; "" for the folder's name.

    Raises:
        UserError: it is no run's folder, or its config cannot be read.
    """
    file = path / "metrics.json"
    curves = read_metrics(file)
    if not curves:
        raise UserError(
            f"{file} is not there, or has no values yet; name the output folder of a run"
        )
    log = path / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    logged = {key: (re.findall(pattern, text) or ["–"])[-1] for key, pattern in _OF_THE_LOG.items()}
    config = path / "config.yaml"
    try:
        values = _read_config(config) if config.is_file() else {}
    except Exception as error:  # a file that was written by hand: whatever yaml says of it
        raise UserError(f"{config} cannot be read: {error}") from error
    evaluated = _evaluated(file, curves)
    ends = {key: (curves[key][0][-1], curves[key][1][-1]) for key in evaluated}
    name = name or path.resolve().name
    return RunFolder(name, path, values, curves, ends, logged, _environment(text))


class _Loader(yaml.SafeLoader):
    """Reads Python objects as their names: nothing is imported, and modules may be missing."""

    def name_or_content(self, name: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        return name.partition(":")[2] or self.construct_scalar(node)


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _Loader.name_or_content)


def _read_config(file: Path) -> dict[str, str]:
    content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    return flatten_config(OmegaConf.create(content))


def _evaluated(file: Path, curves: dict[str, Curve]) -> list[str]:
    """The metrics of evaluations: detection's, and what the last evaluation's own record has."""
    names = {name for name in curves if name.rpartition("/")[2].startswith("AP")}
    for line in reversed(file.read_text(encoding="utf-8").splitlines()):
        try:
            last = json.loads(line)
        except json.JSONDecodeError:  # cut off, as for `read_metrics`
            continue
        if "total_loss" not in last:
            names |= {name for name in last if "/" in name}
        break
    return [name for name in curves if name in names]


def _environment(log: str) -> dict[str, str]:
    blocks = re.findall(r"Environment info:\n-+ +-+\n(.*?)\n-+ +-+\n", log, flags=re.DOTALL)
    rows = [re.split(r"  +", line, maxsplit=1) for line in blocks[-1].split("\n")] if blocks else []
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2 and row[0]}


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The paths without what all have in common in front; "" for a single one, named by itself.

    A number, such as a seed, says nothing by itself: the folder around it is named too.
    """
    parts = [
        (path.with_suffix("") if path.suffix in (".pth", ".pkl") else path).resolve().parts
        for path in paths
    ]
    least = 2 if any(p[-1:] and p[-1].isdecimal() for p in parts) else 1
    if len(parts) == 1:
        return ["" if least == 1 else "/".join(parts[0][-least:])]
    common = 0
    while all(len(p) > common + least and p[common] == parts[0][common] for p in parts):
        common += 1
    return ["/".join(p[common:]) for p in parts]
