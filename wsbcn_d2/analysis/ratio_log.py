"""The ratios of a run's SN layers over its training, in a file beside ``metrics.json``.

JSON lines. The first is ``{"layers": {name: [statistics, groups], …}, "unit": 1e-4}``, the others
``{"iteration": i, "mean": [[…], …], "var": [[…], …]}``, with a list of G x K whole numbers of that
unit for each layer. Iterations are counted from 0, as in ``metrics.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..norms import SwitchNorm

__all__ = ["LayerRatios", "RatioLog", "read_ratio_log"]

_UNIT = 1e-4


@dataclass
class LayerRatios:
    """The ratios of one layer over T records.

    Attributes:
        statistics: the K statistics, of ``"in"``, ``"ln"``, ``"bn"``.
        iterations: ``(T,)``, how many were done.
        mean, var: ``(T, G, K)``, of the G channel groups.
    """

    statistics: tuple[str, ...]
    iterations: np.ndarray
    mean: np.ndarray
    var: np.ndarray


class RatioLog:
    """Appends to the file, or goes on with that of an interrupted run.

    Args:
        path: the file.
        layers: by name, in the order of the records.
        start_iter: the first iteration of this run; what is recorded from there on is dropped, as
            a resumed run repeats it. At 0 an older file is replaced.
    """

    def __init__(
        self, path: str | os.PathLike[str], layers: Mapping[str, SwitchNorm], start_iter: int = 0
    ) -> None:
        self.path = Path(path)
        header = {
            "layers": {
                n: [list(layer.statistics), layer.num_groups] for n, layer in layers.items()
            },
            "unit": _UNIT,
        }
        kept: list[dict[str, Any]] = []
        if start_iter > 0:
            kept = [r for r in _records(self.path) if r.get("iteration", -1) < start_iter]
        if header not in [record for record in kept if "layers" in record][-1:]:
            kept.append(header)
        partial = self.path.with_name(f"{self.path.name}.tmp")
        partial.write_text("".join(map(_line, kept)), encoding="utf-8")
        partial.replace(self.path)

    def write(self, iteration: int, ratios: Sequence[Tensor]) -> None:
        """Append a record.

        Args:
            iteration: counted from 0.
            ratios: from `collect_ratios`, in the order of the layers.
        """
        counts = [(r / _UNIT).round().long().flatten(1).tolist() for r in ratios]
        record: dict[str, Any] = {"iteration": iteration}
        record |= {kind: [c[i] for c in counts] for i, kind in enumerate(("mean", "var"))}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a killed job may have left half of one."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def read_ratio_log(path: str | os.PathLike[str]) -> dict[str, LayerRatios]:
    """Read what `RatioLog` wrote: the ratios of each layer, by name.

    A file that is not there has no layers. Of a run that went on with other layers, those that it
    has at its end.
    """
    layers: dict[str, Any] = {}
    unit = _UNIT
    records: list[dict[str, Any]] = []
    for record in _records(Path(path)):
        if "layers" in record:
            layers, unit, records = record["layers"], record["unit"], []
        else:
            records.append(record)
    iterations = np.array([record["iteration"] + 1 for record in records], dtype=int)
    found = {}
    for i, (name, (statistics, groups)) in enumerate(layers.items()):
        shape = (len(records), groups, len(statistics))
        mean, var = (
            np.array([r[kind][i] for r in records], dtype=float).reshape(shape) * unit
            for kind in ("mean", "var")
        )
        found[name] = LayerRatios(tuple(statistics), iterations, mean, var)
    return found
