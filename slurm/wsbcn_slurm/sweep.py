"""The runs of a sweep, each a few overrides and a name."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from wsbcn_d2.errors import ConfigError

__all__ = ["combinations", "run_name", "split_values"]


def combinations(sweeps: Sequence[str], pairs: bool) -> list[list[str]]:
    """The overrides of each run.

    Args:
        sweeps: ``key=a,b,c``, of which the product is taken; or one path of a file, each line of
            which holds the overrides of a run.
        pairs: whether overrides are ``KEY VALUE`` (yaml configs), not ``key=value``.

    Raises:
        ConfigError: neither; no values; or the same run twice.
    """
    if len(sweeps) == 1 and "=" not in sweeps[0]:
        path = Path(sweeps[0])
        if not path.is_file():
            raise ConfigError(f"--sweep {sweeps[0]}: must be key=a,b,c or a file of override lines")
        lines = [shlex.split(x, comments=True) for x in path.read_text("utf-8").splitlines()]
        runs = [line for line in lines if line]
    else:
        axes = []
        for sweep in sweeps:
            key, sign, text = sweep.partition("=")
            values = split_values(text)
            if not sign or not key or not all(values):
                raise ConfigError(f"--sweep {sweep}: must be key=a,b,c")
            axes.append([[key, v] if pairs else [f"{key}={v}"] for v in values])
        runs = [list(itertools.chain(*choice)) for choice in itertools.product(*axes)]
    names = [run_name(run) for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--sweep: {name} is there {names.count(name)} times")
    if not runs:
        raise ConfigError("--sweep: no runs")
    return runs


def split_values(text: str) -> list[str]:
    """Split at commas outside of brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += character
    return values


def run_name(overrides: Sequence[str]) -> str:
    """A folder's name for a run; without signs that mean something in an override."""
    return re.sub(r"[^\w.+-]+", "_", "_".join(overrides)).strip("_")[:120]
