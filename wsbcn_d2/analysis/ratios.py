"""The ratios of many SN layers at once, with one copy from their device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..norms import SparseSwitchNorm, SwitchNorm, sparsestmax

__all__ = ["collect_ratios", "switch_layers"]


def switch_layers(model: nn.Module) -> dict[str, SwitchNorm]:
    """The SN, SyncSN and SSN layers of a model by module name, without the prefix of a wrapper."""
    return {
        name.removeprefix("module."): module
        for name, module in model.named_modules()
        if isinstance(module, SwitchNorm)
    }


@torch.no_grad()
def collect_ratios(layers: Iterable[SwitchNorm]) -> list[Tensor]:
    """`SwitchNorm.ratios` of each layer, on the CPU in float64.

    Layers with equally many statistics are computed together: a model has dozens, and on a GPU
    each of their few operators would cost a launch.

    Args:
        layers: on one device.

    Returns:
        ``(2, G, K)`` for each: of the mean and of the variance, by channel group, in the order of
        the layer's ``statistics``.
    """
    layers = list(layers)
    sizes, parts = [], []
    for layer in layers:
        tensors: list[Tensor] = [layer.mean_weight, layer.var_weight]
        if isinstance(layer, SparseSwitchNorm):
            tensors += [layer.mean_fixed, layer.var_fixed, layer.radius]
        sizes.append([t.numel() for t in tensors])
        parts += [t.reshape(-1) for t in tensors]
    if not layers:
        return []
    flat = torch.cat(parts).cpu().double()  # the only copy
    rows = flat.split([sum(size) for size in sizes])
    found: dict[int, Tensor] = {}
    kinds = [(len(layer.statistics), isinstance(layer, SparseSwitchNorm)) for layer in layers]
    for kind in set(kinds):
        count, sparse = kind
        members = [i for i, each in enumerate(kinds) if each == kind]
        controls = torch.cat([rows[i][: 2 * sizes[i][0]] for i in members]).view(-1, count)
        if sparse:
            groups = [layers[i].num_groups for i in members]
            fixed = torch.cat([rows[i][2 * sizes[i][0] : -1] for i in members]).long()
            radius = torch.stack([rows[i][-1] for i in members])
            repeats = torch.tensor(groups) * 2
            # The radius at which a ratio is one-hot is not exact in float32.
            last = ((count - 1) / count) ** 0.5 - torch.finfo(torch.float32).eps
            radius = torch.where(radius >= last, 1.0, radius).repeat_interleave(repeats)
            ratios = sparsestmax(controls, radius.unsqueeze(-1))
            one_hot = nn.functional.one_hot(fixed.clamp(min=0), count).double()
            ratios = torch.where(fixed.unsqueeze(-1) >= 0, one_hot, ratios)
        else:
            ratios = controls.softmax(-1)
        split = ratios.split([2 * layers[i].num_groups for i in members])
        for i, values in zip(members, split, strict=True):
            found[i] = values.view(2, -1, count)
    return [found[i] for i in range(len(layers))]
