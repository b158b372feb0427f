"""Reading checkpoint files of other projects, without running code that they bring."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

__all__ = ["CheckpointError", "check_is_file", "read_checkpoint", "unwrap"]

# torch.save before 1.6: a pickle that starts with torch's magic number.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
# What arrays and numbers of numpy are pickled as: they hold data and run nothing. numpy 2 moved
# `core` to `_core`, and pickles name the module.
_NUMPY_NAMES = {
    f"numpy.{core}.multiarray.{name}": function
    for core in ("core", "_core")
    for name, function in (
        ("_reconstruct", np.zeros(1).__reduce__()[0]),
        ("scalar", np.float64(1).__reduce__()[0]),
    )
} | {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
_NUMPY_DTYPES = [type(np.dtype(t)) for t in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
_HARMLESS = {"collections.OrderedDict", "_codecs.encode"}
# Where the projects keep the state dict, the outermost first; timm and SN also have a text in
# "model".
_WRAPPERS = ("state_dict", "model", "blobs")


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used; the message names it and says what to do."""


def check_is_file(path: str | Path) -> None:
    """Raise CheckpointError where there is no file, or a folder."""
    path = Path(path)
    if path.is_dir():
        found = ", ".join(sorted(file.name for file in path.glob("*.pth"))) or "no .pth file"
        raise CheckpointError(f"{path} is a folder; name a checkpoint in it (it has {found})")
    if not path.is_file():
        raise CheckpointError(f"{path} is not there (looked for {path.absolute()})")


def read_checkpoint(path: str | Path, trust: bool = False, mmap: bool = False) -> Any:
    """Read a checkpoint file: torch's formats old and new, pickles of arrays, safetensors.

    The format is recognized by content, not by the name of the file.

    Args:
        path: a local file.
        trust: also read files that hold other objects than tensors, arrays and plain data. That
            runs code of the file's choice: only for files whose origin you trust.
        mmap: leave the values of tensors on the disk until they are looked at, as ``torch.load``
            does, where the format allows it.

    Raises:
        CheckpointError: the file is not there, is no checkpoint, is damaged, or holds other objects
            and is not trusted.
    """
    path = Path(path)
    check_is_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        start = file.read(200)
    if not start.startswith((b"PK", _LEGACY_TORCH)):
        return _read_pickle(path, start, trust)
    names: list[Any] = [(value, name) for name, value in _NUMPY_NAMES.items()]
    try:
        with torch.serialization.safe_globals([*names, *_NUMPY_DTYPES]):
            mmap = mmap and start.startswith(b"PK")  # not the format before torch 1.6
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        raise CheckpointError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, OSError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} is damaged or incomplete ({size:,} bytes); get it anew: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs the package safetensors: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # the package's own, which is no subclass of any
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Refuses every name that is not an array's, or all containers' of plain data."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _NUMPY_NAMES:
            return _NUMPY_NAMES[full]
        if full in _HARMLESS or (module == "numpy.dtypes" and name.endswith("DType")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {full}")


def _read_pickle(path: Path, start: bytes, trust: bool) -> Any:
    # latin1: what arrays of Python 2 need.
    unpickler = pickle.Unpickler if trust else _ArrayUnpickler
    try:
        with path.open("rb") as file:
            return unpickler(file, encoding="latin1").load()
    except Exception as error:  # a file that is no pickle can raise anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise CheckpointError(_refusal(path, str(error))) from error
        raise CheckpointError(f"{path} is no checkpoint but {_describe(start, error)}") from error


def _describe(start: bytes, error: Exception) -> str:
    """What a file is that is not a checkpoint, from its first bytes."""
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; `git lfs pull` gets the file itself"
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        return "a web page; the download went wrong"
    text = start.decode("utf-8", "replace")
    if "\ufffd" not in text and (text.isprintable() or "\n" in text):
        return f"a text file, which starts with {text.splitlines()[0][:60]!r}"
    return f"a file of another format, or damaged ({error})"


def _refusal(path: Path, message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    what = f" ({found.group(1)})" if found else ""
    return (
        f"{path} holds objects other than tensors{what}, and reading those runs code of the file's "
        "choice. If you trust its origin, tools/convert_weights.py --trust (trust=True in Python) "
        "reads it; or save its state dict alone"
    )


def unwrap(checkpoint: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate the state dict of a checkpoint from its other content.

    Args:
        checkpoint: content returned by `read_checkpoint`.

    Returns:
        tensors by name, without ``module.`` of (Distributed)DataParallel in front, floating ones in
        float32; and everything else: the containers' other entries.

    Raises:
        ValueError: there are no tensors in it.
    """
    metadata: dict[str, Any] = {}
    state = checkpoint
    while isinstance(state, Mapping):
        inner = [key for key in _WRAPPERS if isinstance(state.get(key), Mapping)]
        if not inner:
            break
        metadata |= {str(k): v for k, v in state.items() if k != inner[0]}
        state = state[inner[0]]
    if not isinstance(state, Mapping):
        raise ValueError(f"no state dict in the checkpoint, but a {type(state).__name__}")
    tensors = {}
    for key, value in state.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, Tensor):
            value = value.detach()
            tensors[str(key)] = value.float() if value.is_floating_point() else value
        else:
            metadata[str(key)] = value
    if not tensors:
        first = ", ".join(map(str, list(state)[:10])) or "nothing"
        raise ValueError(f"no tensors in the checkpoint; its first keys: {first}")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors, metadata
