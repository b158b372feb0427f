"""Published weights by name: ``wsbcn://resnet50_gn_ws`` wherever detectron2 takes a path."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import file_lock, get_cache_dir

from .convert import convert_weights
from .entries import CATALOG, Entry
from .reading import CheckpointError

__all__ = ["WeightsHandler", "register_catalog"]

logger = logging.getLogger(__name__)

# Part of the cached files' names: to be raised when the conversion changes.
_VERSION = 2


class WeightsHandler(PathHandler):
    """Resolves ``wsbcn://<name>``: downloads, converts, and keeps the result in iopath's cache.

    The cache is ``$FVCORE_CACHE``, or ``~/.torch/iopath_cache``.
    """

    PREFIX = "wsbcn://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        name = path.removeprefix(self.PREFIX)
        if name not in CATALOG:
            near = difflib.get_close_matches(name, CATALOG, n=3) or sorted(CATALOG)
            raise CheckpointError(
                f"{path} is not in the catalog of docs/weights.md; nearest: {', '.join(near)}"
            )
        entry = CATALOG[name]
        # Another address or other options are other weights.
        digest = hashlib.sha256(repr((_VERSION, entry)).encode()).hexdigest()[:8]
        folder = Path(get_cache_dir()) / "wsbcn_d2"
        converted = folder / f"{name}-{digest}.pth"
        # One of several processes works, the others wait for its result.
        with file_lock(str(converted)):
            if force or not converted.is_file():
                original = _original(path, entry, folder, force)
                _check_hash(original, entry.sha256)
                convert_weights(original, converted, **entry.options)
        return str(converted)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        if mode not in ("r", "rb"):
            raise ValueError(f"mode ({mode!r}) must be 'r' or 'rb': the catalog is read only")
        return open(self._get_local_path(path, **kwargs), mode, buffering)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return path.removeprefix(self.PREFIX) in CATALOG

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path)


def _original(path: str, entry: Entry, folder: Path, force: bool) -> Path:
    if not entry.file:
        return Path(PathManager.get_local_path(entry.url, force=force))
    original = folder / "original" / entry.file
    if not original.is_file():
        original.parent.mkdir(parents=True, exist_ok=True)
        raise CheckpointError(
            f"{path} is on Google Drive, which hands it to a browser only. Open {entry.url} , save "
            f"the file as {original} and try again; or convert the file with "
            "tools/convert_weights.py"
        )
    return original


def _check_hash(original: Path, sha256: str) -> None:
    if not sha256:
        return
    found = hashlib.sha256(original.read_bytes()).hexdigest()
    if not found.startswith(sha256):
        os.remove(original)
        raise CheckpointError(
            f"{original} has the hash {found[:8]}…, not {sha256}: it was damaged on the way and is "
            "deleted now; try again"
        )


_HANDLER = WeightsHandler()


def register_catalog() -> None:
    """Make ``wsbcn://`` known to detectron2's PathManager. Calling it again changes nothing.

    Importing `wsbcn_d2.checkpoint` does it.
    """
    PathManager.register_handler(_HANDLER)
