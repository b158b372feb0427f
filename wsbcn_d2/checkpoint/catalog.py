"""Published weights by name: ``wsbcn://resnet50_gn_ws`` wherever detectron2 takes a path.

The addresses are those of the projects' public pages; docs/weights.md lists them with the pages.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import file_lock, get_cache_dir

from .convert import convert_weights
from .reading import CheckpointError

__all__ = ["CATALOG", "Entry", "WeightsHandler", "register_catalog"]

logger = logging.getLogger(__name__)

# Part of the cached files' names: to be raised when the conversion changes.
_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One file of published weights.

    Attributes:
        url: where it is.
        options: of `convert_weights`: the source, and what the file does not say of itself.
        file: name to keep it under, where the address does not end in it. Such files are on Google
            Drive, which hands them to a browser only: the user puts them in place.
        sha256: start of the file's hash, where its project publishes one.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    sha256: str = ""


_MMLAB = "https://download.openmmlab.com/pretrain/third_party"
_TORCHVISION = "https://download.pytorch.org/models"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-rsb-weights"
_WS = "http://cs.jhu.edu/~syqiao/WeightStandardization"
_BCN = "https://cs.jhu.edu/~syqiao/BatchChannelNormalization"
_DRIVE = "https://drive.google.com/open?id="

_GN_WS = {"source": "mmdet", "ws": True}
_GN = {"source": "mmdet", "ws": False}
# Detectron's, which mmdetection's configs feed with BGR of unit deviation; ours is RGB.
_GN_DETECTRON = {
    **_GN,
    "input_format": "BGR",
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (1.0, 1.0, 1.0),
    "fold_input": True,
}


def _bn(name: str, sha256: str) -> Entry:
    # torchvision's reference script: 32 images a GPU. torch.hub checks the same hash.
    options = {"source": "torchvision", "minibatch": 32}
    return Entry(f"{_TORCHVISION}/{name}-{sha256}.pth", options, sha256=sha256)


def _drive(source: str, identifier: str, file: str, minibatch: int) -> Entry:
    return Entry(_DRIVE + identifier, {"source": source, "minibatch": minibatch}, file)


def _ssn(identifier: str, minibatch: int) -> Entry:
    return _drive("ssn", identifier, f"ssn_8x{minibatch}.pth", minibatch)


CATALOG = {
    # GN + WS, by the authors, as mmdetection serves and uses them
    "resnet50_gn_ws": Entry(f"{_MMLAB}/resnet50_gn_ws-15beedd8.pth", _GN_WS),
    "resnet101_gn_ws": Entry(f"{_MMLAB}/resnet101_gn_ws-3e3c308c.pth", _GN_WS),
    "resnext50_32x4d_gn_ws": Entry(f"{_MMLAB}/resnext50_32x4d_gn_ws-0d87ac85.pth", _GN_WS),
    "resnext101_32x4d_gn_ws": Entry(f"{_MMLAB}/resnext101_32x4d_gn_ws-34ac1a9e.pth", _GN_WS),
    # GN + WS, from the authors' own page
    "resnet50_gn_ws_jhu": Entry(f"{_WS}/R-50-GN-WS.pth.tar", {"source": "ws"}),
    "resnet101_gn_ws_jhu": Entry(f"{_WS}/R-101-GN-WS.pth.tar", {"source": "ws"}),
    "resnext50_32x4d_gn_ws_jhu": Entry(f"{_WS}/X-50-GN-WS.pth.tar", {"source": "ws"}),
    "resnext101_32x4d_gn_ws_jhu": Entry(f"{_WS}/X-101-GN-WS.pth.tar", {"source": "ws"}),
    # GN
    "resnet50_gn": Entry(f"{_MMLAB}/resnet50_gn-9186a21c.pth", _GN_DETECTRON),
    "resnet101_gn": Entry(f"{_MMLAB}/resnet101_gn-cac0ab98.pth", _GN_DETECTRON),
    "resnext50_32x4d_gn": Entry(f"{_MMLAB}/resnext50_32x4d_gn-c7e8b754.pth", _GN),
    "resnext101_32x4d_gn": Entry(f"{_MMLAB}/resnext101_32x4d_gn-ac3bb84e.pth", _GN),
    "resnet50_gn_timm": Entry(f"{_TIMM}/resnet50_gn_a1h2-8fe6c4d0.pth", {"source": "timm"}),
    # BCN + WS; the scripts' batch over its 4 GPUs
    "resnet50_bcn_ws": Entry(f"{_BCN}/rn50_bcn_ws.pth", {"source": "bcn", "minibatch": 64}),
    "resnet101_bcn_ws": Entry(f"{_BCN}/rn101_bcn_ws.pth", {"source": "bcn", "minibatch": 32}),
    "resnext50_32x4d_bcn_ws": Entry(f"{_BCN}/rx50_bcn_ws.pth", {"source": "bcn"}),
    # BN
    "resnet18_bn": _bn("resnet18", "f37072fd"),
    "resnet50_bn": _bn("resnet50", "0676ba61"),
    "resnet101_bn": _bn("resnet101", "63fe2227"),
    "resnext50_32x4d_bn": _bn("resnext50_32x4d", "7cdf4587"),
    # SN, named by its setting: GPUs x images a GPU
    "resnet50_sn_8x32": _drive(
        "sn", "17mHmoVom2zM7nrbFeE4yzKa7KtqykTyD", "ResNet50v1+SN(8,32)-77.49.pth", 32
    ),
    "resnet50_sn_8x4": _drive(
        "sn", "1x_ZR0ZFtvRzZHkFZVXeVoLeXoJKX-LrZ", "ResNet50v1+SN(8,4)-75.85.pth", 4
    ),
    "resnet50_sn_in_ln_8x1": _drive(
        "sn", "1-y8dDn19Hx02efy4Z5ZRihggYHTYvqkc", "ResNet50v1+SN(8,1)-75.94.pth", 1
    ),
    "resnet101_sn_8x32": _drive(
        "sn", "1xza5ju6lRRelPym3Sj99VY_8c4jXhxkn", "ResNet101v1+SN(8,32)-78.54.pth", 32
    ),
    "resnet50_sn_8x2": _drive(
        "sn_detection", "1b0ia4AnSGL__8pAKG-n4w3CSeYCjlNwe", "resnet-sn-50-(8,2)-fpn.pth", 2
    ),
    # SSN
    "resnet50_ssn_8x32": _ssn("1b7tezVjfSl1MZNHRC8qkaw59lLW4EYEh", 32),
    "resnet50_ssn_8x16": _ssn("1wJx_6bNrv7N9zdy1m2vkABTwMuowluxV", 16),
    "resnet50_ssn_8x8": _ssn("18HXLmZVB5JF_TcneEMHXtCo1RQt17fYC", 8),
    "resnet50_ssn_8x4": _ssn("1Ry4kjLURixg2_pzj6J1lwGg1USnSC0oz", 4),
    "resnet50_ssn_8x2": _ssn("1r485fLeSAwS5zKrxcAtGxa_mPr1lWcoS", 2),
}


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
