"""Silences warnings of torch and detectron2 about each other, on import.

No user of this project can act on them. To be imported before detectron2 is.
"""

from __future__ import annotations

import logging
import os
import warnings

__all__: list[str] = []

# How the message starts, and its category.
_KNOWN: list[tuple[str, type[Warning]]] = [
    # detectron2 scripts its box functions, and looks for its model zoo with pkg_resources.
    ("`torch.jit.", FutureWarning),
    ("`torch.jit.", DeprecationWarning),
    ("pkg_resources is deprecated", UserWarning),
    ("pkg_resources is deprecated", DeprecationWarning),
    # detectron2's anchors, its way to make tensors of images, and its DistributedDataParallel.
    ("torch.meshgrid", UserWarning),
    ("The given NumPy array is not writable", UserWarning),
    ("`broadcast_buffers` is deprecated", FutureWarning),
]


def _silence() -> None:
    """Ignore these in this process and, through ``PYTHONWARNINGS``, in those that it starts."""
    filters = [f"ignore:{start}:{category.__name__}" for start, category in _KNOWN]
    for text, (start, category) in zip(filters, _KNOWN, strict=True):
        warnings.filterwarnings("ignore", message=start.replace(".", r"\."), category=category)
        inherited = os.environ.get("PYTHONWARNINGS", "")
        if text not in inherited.split(","):
            os.environ["PYTHONWARNINGS"] = f"{inherited},{text}".strip(",")
    # detectron2 asks torch by a name that torch is about to change, and torch says so in its log.
    logging.getLogger("torch.fx._symbolic_trace").addFilter(
        lambda record: "is_fx_tracing" not in record.getMessage()
    )


_silence()
