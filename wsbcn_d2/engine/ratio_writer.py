"""What SN layers learn, recorded while they do."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from ..analysis import RatioLog, collect_ratios, layer_label, switch_layers
from ..norms import SparseSwitchNorm
from .hooks import is_due

__all__ = ["RatioWriter"]

logger = logging.getLogger(__name__)

# As many points of a curve as TensorBoard keeps.
_POINTS = 1000


class RatioWriter(HookBase):
    """Records how much the SN layers use each statistic, every ``period`` iterations.

    * ``ratio/mean_in``, ``ratio/var_bn``, …, means over layers (and groups), go to the storage,
      and so to ``metrics.json`` and TensorBoard.
    * With ``output_dir``, each layer's ratios go to ``ratios.json`` in it (`RatioLog`), and to
      TensorBoard events in ``ratios/``, there at most 1000 times a training.
    * Of sparse SN layers, the ratios that became one-hot are logged.

    It does nothing to a model without SN layers. Registered on rank 0 only: it communicates
    nothing, and the controls are the same on all ranks.

    Args:
        model: whose layers; under EMA the average, which is what is evaluated.
        period: iterations.
        output_dir: of the run; None writes no files.
    """

    def __init__(
        self,
        model: nn.Module,
        period: int = 20,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._layers = switch_layers(model)
        self._period = period
        self._folder = None if output_dir is None else Path(output_dir)
        self._log: RatioLog | None = None
        self._board: SummaryWriter | None = None
        self._one_hot: set[str] = set()

    def before_train(self) -> None:
        if not self._layers:
            return
        start = self.trainer.start_iter
        self._one_hot = set(self._choices(collect_ratios(self._layers.values())))
        if self._folder is not None:
            self._log = RatioLog(self._folder / "ratios.json", self._layers, start)
            self._board = SummaryWriter(str(self._folder / "ratios"), purge_step=start)

    def after_step(self) -> None:
        iteration, last = self.trainer.iter, self.trainer.max_iter
        if not self._layers or not is_due(iteration, self._period, last):
            return
        ratios = collect_ratios(self._layers.values())
        self._put_means(ratios)
        self._log_choices(ratios)
        if self._log is not None:
            self._log.write(iteration, ratios)
        every = self._period * math.ceil(last / self._period / _POINTS)
        if self._board is not None and is_due(iteration, every, last):
            self._put_layers(self._board._get_file_writer(), ratios, iteration)

    def after_train(self) -> None:
        if self._board is not None:
            self._board.close()

    def _put_means(self, ratios: list[Tensor]) -> None:
        found: dict[str, list[float]] = {}
        for layer, values in zip(self._layers.values(), ratios, strict=True):
            for kind, shares in zip(("mean", "var"), values.mean(1).tolist(), strict=True):
                for name, share in zip(layer.statistics, shares, strict=True):
                    found.setdefault(f"ratio/{kind}_{name}", []).append(share)
        means = {name: sum(shares) / len(shares) for name, shares in found.items()}
        get_event_storage().put_scalars(smoothing_hint=False, **means)

    def _put_layers(self, writer: FileWriter, ratios: list[Tensor], iteration: int) -> None:
        # One event with all numbers; an event each, as add_scalar writes them, takes ten times as
        # long.
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = []
        for (name, layer), layer_ratios in zip(self._layers.items(), ratios, strict=True):
            label = layer_label(name)
            for kind, shares in zip(("mean", "var"), layer_ratios.mean(1).tolist(), strict=True):
                values += [
                    Summary.Value(tag=f"{label}/{kind}_{statistic}", simple_value=share)
                    for statistic, share in zip(layer.statistics, shares, strict=True)
                ]
        writer.add_summary(Summary(value=values), iteration)

    def _choices(self, ratios: list[Tensor]) -> dict[str, str]:
        """Of sparse layers, the ratios that are one-hot, and what they chose."""
        found = {}
        for (name, layer), values in zip(self._layers.items(), ratios, strict=True):
            if not isinstance(layer, SparseSwitchNorm):
                continue
            for kind, groups in zip(("mean", "var"), values, strict=True):
                for g, shares in enumerate(groups):
                    if shares.max() == 1:
                        group = f" {g}" if len(groups) > 1 else ""
                        chosen = layer.statistics[int(shares.argmax())].upper()
                        found[f"{layer_label(name)} {kind}{group}"] = chosen
        return found

    def _log_choices(self, ratios: list[Tensor]) -> None:
        choices = self._choices(ratios)
        new = [
            f"{which} {chosen}" for which, chosen in choices.items() if which not in self._one_hot
        ]
        self._one_hot |= set(choices)
        if new:
            total = sum(
                2 * layer.num_groups
                for layer in self._layers.values()
                if isinstance(layer, SparseSwitchNorm)
            )
            logger.info("%d of %d ratios are one-hot; new: %s", len(choices), total, ", ".join(new))
