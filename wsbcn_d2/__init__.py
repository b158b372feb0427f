"""Micro-batch detector training for detectron2: WS, BCN, SN, SyncSN and their recipes.

``import wsbcn_d2`` and ``import wsbcn_d2.norms`` need torch only; the names that bridge to
detectron2 are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "__version__",
    "add_wsbcn_config",
    "get_config",
    "register_norms",
    "standardize_convs",
    "unregister_norms",
]

__version__ = "0.1.0"

_LAZY = {
    "add_wsbcn_config": "wsbcn_d2.modeling",
    "get_config": "wsbcn_d2.recipes",
    "register_norms": "wsbcn_d2.modeling",
    "standardize_convs": "wsbcn_d2.modeling",
    "unregister_norms": "wsbcn_d2.modeling",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
