"""Running statistics of SN's batch-average mode, which the released code stores as sums."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["finish_batch_average"]

_STEM = "stem.conv1"
# Averaged variances stay below 1 times the bound, and a little over where colours are jittered;
# sums over the release's 200 mini-batches lie far above.
_SLACK = 4.0
# Filters that weight decay has all but removed say nothing: their variance is rounding.
_DEAD = 1e-3


def finish_batch_average(
    norms: Mapping[str, dict[str, Tensor]], convs: Mapping[str, Tensor], count: int | None
) -> dict[str, str]:
    """Turn sums over mini-batches into averages, in place, or check that there are none.

    The release sums the batch means into ``running_mean`` and mean² + variance into
    ``running_var``; SwitchNorm_Detection into ``batch_mean`` and ``batch_var``.

    Args:
        norms: tensors of each norm, by detectron2's name; accumulators are removed.
        convs: weights of the convolutions.
        count: number of mini-batches (K); None if the statistics are averages already.

    Returns:
        new name of each tensor that was renamed; "" if it is not used.

    Raises:
        ValueError: they are sums and ``count`` is None, or not what ``count`` would give.
    """
    if count is not None and count < 1:
        raise ValueError(f"batch_average_count ({count}) must be at least 1")
    renamed: dict[str, str] = {}
    switchable = {name: f for name, f in norms.items() if "mean_weight" in f and "running_var" in f}
    if count is not None and not switchable:
        raise ValueError(
            f"batch_average_count ({count}) was given, but no norm is an SN with batch statistics"
        )
    for name, fields in switchable.items():
        accumulated = _take_accumulators(name, fields, count, renamed)
        if not accumulated and not fields["running_var"].any():
            raise ValueError(
                f"{name}.running_var is all 0: these running statistics were never filled (the "
                "released SN starts them at 0); convert a file that was saved after they were"
            )
        if count is not None:
            _divide(name, fields, count)
    _check_stem(norms.get(f"{_STEM}.norm", {}), convs.get(f"{_STEM}.weight"))
    return renamed


def _take_accumulators(
    name: str, fields: dict[str, Tensor], count: int | None, renamed: dict[str, str]
) -> bool:
    """SwitchNorm_Detection's. Whether they have become the running statistics."""
    used = False
    for what in ("mean", "var"):
        sums = fields.pop(f"batch_{what}", None)
        if sums is None:
            continue
        renamed[f"{name}.batch_{what}"] = ""
        if sums.any() and count is not None:
            fields[f"running_{what}"] = sums
            renamed |= {
                f"{name}.batch_{what}": f"{name}.running_{what}",
                f"{name}.running_{what}": "",
            }
            used = True
        elif sums.any() and not fields["running_var"].any():
            raise ValueError(_advice(name, f"batch_{what} holds sums"))
    return used


def _divide(name: str, fields: dict[str, Tensor], count: int) -> None:
    mean = fields["running_mean"].double() / count
    var = fields["running_var"].double() / count - mean.square()
    # Rounding of the float32 sums may leave a constant channel a little below 0.
    if (var < -1e-4 * mean.square() - 1e-8).any():
        raise ValueError(
            f"{name}: sums divided by batch_average_count ({count}) give negative variances; the "
            "count is too small, or the statistics are averages already"
        )
    fields["running_mean"], fields["running_var"] = mean.float(), var.clamp(min=0).float()


def _check_stem(norm: Mapping[str, Tensor], weight: Tensor | None) -> None:
    """By Cauchy-Schwarz, a filter's output on pixels of unit mean square is at most (Σ|w|)²."""
    if weight is None or "mean_weight" not in norm or "running_var" not in norm:
        return
    bound = weight.abs().flatten(1).sum(1).square()
    alive = bound > _DEAD * bound.max()
    if not alive.any():
        return
    ratio = (norm["running_var"].reshape(-1)[alive] / bound[alive]).max().item()
    if ratio > _SLACK:
        found = (
            f"running_var is up to {ratio:.0f} times the largest variance that the convolution can "
            "have on normalized images"
        )
        raise ValueError(_advice(f"{_STEM}.norm", found))


def _advice(name: str, found: str) -> str:
    return (
        f"{name}: {found}: the sums of the batch-average mode, it seems. Give the number of "
        "mini-batches with --batch-average-count (200 in the released script)"
    )
