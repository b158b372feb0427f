"""Released segmentation networks under the names of `Segmentor`.

``deeplab_ws``, ``deeplab_bcn``
    DeepLabV3 of the WS and BCN releases on PASCAL VOC: a ResNet under torchvision's names, and
    ``aspp.aspp1`` to ``aspp5`` with their norms, ``aspp.conv2``, ``aspp.conv3``.
``sn``
    SwitchNorm_Segmentation on ADE20K, in two files: the encoder, and the decoder with ``cbr``,
    ``conv_last`` and both again with ``_deepsup``.

The names are facts of the files; nothing here is code of those projects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsbcn_d2.checkpoint.convert import convert_state
from wsbcn_d2.checkpoint.files import replacing
from wsbcn_d2.checkpoint.norm_fields import convert_fields, norm_kind, split_norms
from wsbcn_d2.checkpoint.reading import read_checkpoint, unwrap

__all__ = ["SOURCES", "convert_files", "convert_segmentor"]

# The source of the backbone, as `wsbcn_d2.checkpoint.sources` names it.
SOURCES = {"deeplab_ws": "ws", "deeplab_bcn": "bcn", "sn": "sn"}

_ASPP = (
    (r"aspp\.aspp([1-4])\.weight", "sem_seg_head.aspp.convs.{0}.weight"),
    (r"aspp\.aspp([1-4])_bn\.(.+)", "sem_seg_head.aspp.convs.{0}.norm.{1}"),
    (r"aspp\.aspp5\.weight", "sem_seg_head.aspp.convs.4.1.weight"),
    (r"aspp\.aspp5_bn\.(.+)", "sem_seg_head.aspp.convs.4.1.norm.{0}"),
    (r"aspp\.conv2\.weight", "sem_seg_head.aspp.project.weight"),
    (r"aspp\.bn2\.(.+)", "sem_seg_head.aspp.project.norm.{0}"),
    (r"aspp\.conv3\.(weight|bias)", "sem_seg_head.predictor.{0}"),
)
_C1 = (
    (r"cbr\.0\.weight", "sem_seg_head.conv.weight"),
    (r"cbr\.1\.(.+)", "sem_seg_head.conv.norm.{0}"),
    (r"conv_last\.(weight|bias)", "sem_seg_head.predictor.{0}"),
    (r"cbr_deepsup\.0\.weight", "auxiliary_head.conv.weight"),
    (r"cbr_deepsup\.1\.(.+)", "auxiliary_head.conv.norm.{0}"),
    (r"conv_last_deepsup\.(weight|bias)", "auxiliary_head.predictor.{0}"),
)


def convert_files(paths: Sequence[str | Path], output: str | Path, source: str) -> dict[str, Any]:
    """Convert released files into one that `Segmentor` loads; it appears whole or not at all.

    Args:
        paths: the file, or encoder and decoder.
        output: the new one, ``….pth``.
        source: a key of `SOURCES`.

    Returns:
        what was written; see `convert_segmentor`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or as `convert_segmentor`.
    """
    state: dict[str, Tensor] = {}
    for path in paths:
        state |= unwrap(read_checkpoint(Path(path)))[0]
    content = convert_segmentor(state, source)
    with replacing(str(output)) as file:
        torch.save(content, file)
    return content


def convert_segmentor(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Convert tensors by name.

    Args:
        state: of the whole network.
        source: a key of `SOURCES`.

    Returns:
        a checkpoint: ``model``, and ``norms`` and ``pretraining``, which the checkpointer compares
        with the model that it loads them into.

    Raises:
        ValueError: an unknown source, or a tensor that has no place in the network or is missing.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; known: {', '.join(SOURCES)}")
    rules = _C1 if source == "sn" else _ASPP
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _head_name(key, rules)
        if name is None:
            backbone[key] = tensor
        elif not key.endswith("num_batches_tracked"):
            head[name] = tensor
    converted = convert_state(backbone, source=SOURCES[source])
    # DeepLab's code has it so, the ImageNet code of the BCN release the other way.
    converted.pretraining.ws_eps_mode = "outside"
    kinds = {f"backbone.{name}": kind for name, kind in converted.norms["norms"].items()}
    convs = {f"backbone.{name}": ws for name, ws in converted.norms["convs"].items()}
    for name, fields in split_norms(head).items():
        kinds[name] = norm_kind(name, fields)
        for field, tensor in convert_fields(name, kinds[name], fields).items():
            head[f"{name}.{field}"] = tensor
        convs[name.removesuffix(".norm")] = converted.pretraining.ws
    if source == "deeplab_bcn":  # statistics of all GPUs
        kinds = {name: "SyncBCN" for name in kinds}
    if not any(name.startswith("sem_seg_head.predictor") for name in head):
        raise ValueError(
            "the network has a ResNet and no head that is known here: tools/convert_weights.py "
            "converts a backbone alone; SwitchNorm_Segmentation keeps its decoder in a second file"
        )
    tensors = {f"backbone.{name}": tensor for name, tensor in converted.state.items()}
    return {
        "model": {**tensors, **dict(sorted(head.items()))},
        "__author__": "wsbcn_d2",
        "norms": {"norms": kinds, "convs": convs},
        "pretraining": asdict(converted.pretraining),
    }


def _head_name(key: str, rules: Sequence[tuple[str, str]]) -> str | None:
    for pattern, template in rules:
        match = re.fullmatch(pattern, key)
        if match:
            groups = list(match.groups())
            if "convs.{0}" in template:  # counted from 1
                groups[0] = str(int(groups[0]) - 1)
            return template.format(*groups)
    return None
