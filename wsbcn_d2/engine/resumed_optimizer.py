"""Loading the optimizer of a resumed run: state by parameter name, and hyper-parameters."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

__all__ = ["ResumedOptimizer"]

logger = logging.getLogger(__name__)

_NO_HYPERPARAMETERS = {"params", "param_names", "initial_lr"}


class ResumedOptimizer:
    """Lets an optimizer load the state of one with other parameters, groups or hyper-parameters.

    torch matches saved state to parameters by position. Here the names of the parameters are saved
    too, and state is matched by name: a parameter that is new or has another shape starts without
    state, and each group takes the hyper-parameters of the saved group of its first known
    parameter. From another kind of optimizer (SGD, Adam) nothing is loaded.

    Args:
        optimizer: the optimizer built from the config, before its state is loaded.
        scheduler: its learning-rate scheduler, torch's or fvcore's multiplier.
        model: module whose parameters it optimizes, not wrapped.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any, model: nn.Module) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        names = {parameter: name for name, parameter in model.named_parameters()}
        for group in optimizer.param_groups:
            group["param_names"] = [names[parameter] for parameter in group["params"]]
        self._groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        optimizer.register_load_state_dict_pre_hook(_match)

    def after_load(self, new_hyperparameters: bool) -> None:
        """Set the hyper-parameters of the loaded optimizer and the base rates of its scheduler.

        Args:
            new_hyperparameters: restore those of the config. The learning rate keeps its place in
                the schedule, relative to the config's base rate.
        """
        if new_hyperparameters:
            for group, ours in zip(self._optimizer.param_groups, self._groups, strict=True):
                base = ours.get("initial_lr", ours["lr"])
                factor = group["lr"] / group.get("initial_lr", group["lr"])
                group.update(ours, initial_lr=base, lr=base * factor)
        if isinstance(self._scheduler, torch.optim.lr_scheduler.LRScheduler):
            groups = self._optimizer.param_groups
            self._scheduler.base_lrs = [group["initial_lr"] for group in groups]


def _match(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """The saved state as the parameters of ``optimizer`` are grouped."""
    groups = saved["param_groups"]
    if not all("param_names" in group for group in groups):
        return saved  # of an older version: by position
    theirs = {
        name: (group, saved["state"].get(index))
        for group in groups
        for name, index in zip(group["param_names"], group["params"], strict=True)
    }
    own = optimizer.state_dict()
    # SGD has momentum and Adam betas, for example; a newer torch only adds some.
    kinds = [{*group} - _NO_HYPERPARAMETERS for group in (groups[0], own["param_groups"][0])]
    same_kind = kinds[0] <= kinds[1] or kinds[1] <= kinds[0]
    state: dict[int, Any] = {}
    unknown = []
    for group, parameters in zip(own["param_groups"], optimizer.param_groups, strict=True):
        for name, index, parameter in zip(
            group["param_names"], group["params"], parameters["params"], strict=True
        ):
            found = theirs[name][1] if same_kind and name in theirs else {}
            if found is None:
                continue  # it had no gradient in that run either
            if found and _fits(found, parameter):
                state[index] = found
            else:
                unknown.append(name)
        group.setdefault("initial_lr", group["lr"])
        known = [theirs[name][0] for name in group["param_names"] if name in theirs]
        if same_kind:
            chosen = known[0] if known else groups[0]
            group.update(
                {key: chosen[key] for key in chosen if key not in ("params", "param_names")}
            )
    if unknown and saved["state"]:
        logger.warning(
            "The checkpoint has no optimizer state (momentum) that fits %d of %d parameters, such "
            "as %s: it starts anew",
            *(len(unknown), sum(len(group["params"]) for group in own["param_groups"]), unknown[0]),
        )
    return {**saved, "state": state, "param_groups": own["param_groups"]}


def _fits(state: dict[str, Any], parameter: torch.Tensor) -> bool:
    return all(
        not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape == parameter.shape
        for value in state.values()
    )
