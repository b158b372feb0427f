"""The runs of a sweep, each a few overrides and a name."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from wsbcn_d2.errors import ConfigError

__all__ = ["combinations", "run_name"]


def combinations(sweeps: Sequence[str], pairs: bool) -> list[list[str]]:
    """The overrides of each run.

    Args:
        sweeps: ``key=a,b,c`` in hydra's grammar, of which the product is taken; or one path of a
            file, each line of which holds the overrides of a run.
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
        axes = [_axis(sweep, pairs) for sweep in sweeps]
        runs = [list(itertools.chain(*choice)) for choice in itertools.product(*axes)]
    names = [run_name(run) for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--sweep: {name} is there {names.count(name)} times")
    if not runs:
        raise ConfigError("--sweep: no runs")
    return runs


def _axis(sweep: str, pairs: bool) -> list[list[str]]:
    """The override of each value of a key."""
    try:
        parsed = OverridesParser.create().parse_override(sweep)
    except HydraException:
        parsed = None
    if parsed is None or not parsed.key_or_group:
        raise ConfigError(f"--sweep {sweep}: must be key=a,b,c")
    key = parsed.get_key_element()
    if parsed.is_sweep_override():
        values = [str(value) for value in parsed.sweep_string_iterator()]
    else:
        values = [parsed.get_value_element_as_str()]
    if pairs:  # hydra's escapes are read by lazy configs only
        return [[key, re.sub(r"\\(.)", r"\1", value)] for value in values]
    return [[f"{key}={value}"] for value in values]


def run_name(overrides: Sequence[str]) -> str:
    """A folder's name for a run; without signs that mean something in an override."""
    return re.sub(r"[^\w.+-]+", "_", "_".join(overrides)).strip("_")[:120]
