"""Published ResNets and detectors made loadable: detectron2's names and shapes, what they are."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bit import bit_norms
from .detectors import (
    arrange_heads,
    is_detector,
    missing_heads,
    move_into_detector,
    translate_heads,
)
from .files import replacing
from .input_folding import fold_input_into_stem
from .norm_fields import convert_fields, norm_kind, split_norms
from .pretraining import Pretraining, describe_pretraining
from .reading import read_checkpoint, unwrap
from .sources import HEAD, SOURCES, recognize, translate
from .statistics import finish_batch_average

__all__ = ["Conversion", "convert_state", "convert_weights"]

logger = logging.getLogger(__name__)

# How many names an error shows.
_SHOWN = 10


@dataclass
class Conversion:
    """What a conversion made, and what became of every key of the file.

    Attributes:
        state: tensors under detectron2's names: a backbone's, from ``stem`` to ``res5``, or a whole
            detector's.
        pretraining: see `Pretraining`.
        norms: kind of each norm and WS of each convolution, as `describe_norms` has them.
        mapped: the file's key → its new name.
        ignored: the file's key → why the model does without.
        missing: stages that the file does not have.
        notes: where it was taken from what the weights themselves do not say, and what was done to
            them.
        detector: whether it is a whole detector.
    """

    state: dict[str, Tensor]
    pretraining: Pretraining
    norms: dict[str, Any]
    mapped: dict[str, str]
    ignored: dict[str, str]
    missing: list[str]
    notes: list[str] = field(default_factory=list)
    detector: bool = False

    def summary(self) -> str:
        """What the weights are, and the counts of keys."""
        lines = [f"note:         {note}" for note in self.notes]
        missing = f", without {', '.join(self.missing)}" if self.missing else ""
        counts = f"{len(self.mapped)} mapped, {len(self.ignored)} ignored{missing}"
        return "\n".join([self.pretraining.summary(), f"keys:         {counts}", *lines])

    def report(self) -> str:
        """A line for every key of the file, and the `summary`."""
        lines = [f"mapped   {key} -> {name}" for key, name in self.mapped.items()]
        lines += [f"ignored  {key}: {reason}" for key, reason in self.ignored.items()]
        lines += [f"missing  {stage}: not in the file" for stage in self.missing]
        return "\n".join([*lines, self.summary()])


def convert_weights(
    path: str | Path, output: str | Path, *, trust: bool = False, **options: Any
) -> Conversion:
    """Convert a checkpoint file into one that detectron2 loads: a backbone, or a whole detector.

    The new file has ``model``, ``matching_heuristics`` (for a backbone, so that the names fit
    wherever it sits in a model), ``norms`` and ``pretraining``, which `WSBCNCheckpointer` compares
    with the model that it loads them into. It appears whole or not at all.

    Args:
        path: the published file.
        output: the new one, ``….pth``.
        trust: as in `read_checkpoint`.
        options: as in `convert_state`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as in `read_checkpoint`, `unwrap` and `convert_state`, or ``output`` does not
            end in ``.pth``, by which detectron2 knows the format.
    """
    path, output = Path(path), Path(output)
    if output.suffix != ".pth":
        raise ValueError(f"output ({output}) must end in .pth: detectron2 knows the format by it")
    state, metadata = unwrap(read_checkpoint(path, trust))
    try:
        conversion = convert_state(state, metadata, **{"file_name": path.name, **options})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    content = {
        "model": conversion.state,
        "__author__": "wsbcn_d2",
        "matching_heuristics": not conversion.detector,
        "norms": conversion.norms,
        "pretraining": asdict(conversion.pretraining),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(str(output)) as file:
        torch.save(content, file)
    logger.info("Converted %s to %s\n%s", path, output, conversion.summary())
    return conversion


def convert_state(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None = None,
    *,
    file_name: str = "",
    source: str | None = None,
    batch_average_count: int | None = None,
    fold_input: bool = False,
    backbone_only: bool = False,
    **overrides: Any,
) -> Conversion:
    """Convert tensors by name, from `unwrap`.

    A Faster or Mask R-CNN of the sources ``mmdet`` and ``sn_detection`` is converted whole.

    Args:
        state: the tensors.
        metadata: other content of the file.
        file_name: its name; some sources say there what the content does not.
        source: a key of `SOURCES`; None: recognized.
        batch_average_count: K, for a file of SN's batch-average mode, whose running statistics are
            sums over K mini-batches.
        fold_input: as in `fold_input_into_stem`, so that the weights take RGB input with ImageNet's
            deviation.
        backbone_only: leave the neck and heads of a detector out.
        overrides: fields of `Pretraining` that the file does not tell: ``ws``, ``minibatch``,
            ``stride_in_1x1``, ``input_format``, ``pixel_mean``, ``pixel_std``.

    Raises:
        ValueError: an unknown source; a key that has no place in detectron2's model, or a tensor
            that is missing or misshapen (nothing is passed over in silence); running statistics
            that are sums, and no ``batch_average_count``; WS that only the caller can know of; an
            input that cannot be folded.
    """
    metadata = metadata or {}
    if source is None:
        source = recognize(state, metadata, file_name)
    elif source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; known: {', '.join(SOURCES)}")
    heads = {} if backbone_only else translate_heads(source, state)
    detector = is_detector(heads.values())
    mapped, ignored, tensors = _translate_all(source, state, heads if detector else {})
    ignored |= {key: "not a tensor" for key in metadata}
    norms = split_norms(tensors)
    keys = {name: key for key, name in mapped.items()}
    for name, became in finish_batch_average(norms, tensors, batch_average_count).items():
        if became:
            mapped[keys[name]] = became
        else:
            ignored[keys[name]] = "the running statistics are the other ones"
            del mapped[keys[name]]
    kinds = {name: norm_kind(name, fields) for name, fields in norms.items()}
    if any(key.endswith("estbn_moving_speed") for key in state):
        kinds = {name: kind.replace("BatchBCN", "BCN") for name, kind in kinds.items()}
    wrong = sorted(set(kinds.values()) - set(SOURCES[source].norms))
    if wrong:
        raise ValueError(
            f"norms are {', '.join(wrong)}, but weights from {SOURCES[source].title} (source "
            f"{source!r}) have {' or '.join(SOURCES[source].norms)}; leave the source out to have "
            "it recognized"
        )
    for name, fields in norms.items():
        converted = convert_fields(name, kinds[name], fields)
        tensors |= {f"{name}.{key}": tensor for key, tensor in converted.items()}
    tensors = dict(sorted(tensors.items()))
    if source == "bit":
        kinds, missing = bit_norms(tensors), []
    else:
        missing = _check_complete(tensors, kinds, detector)
    # A detector's heads may have another norm than its backbone.
    norm = ", ".join(sorted({kind for name, kind in kinds.items() if _is_backbone(name)}))
    pretraining, notes = describe_pretraining(
        source, norm, tensors, metadata, file_name, overrides, detector
    )
    if fold_input:
        notes.append(fold_input_into_stem(tensors, pretraining))
    if detector:
        notes += arrange_heads(tensors)
    convs = [name.removesuffix(".weight") for name, tensor in tensors.items() if tensor.dim() == 4]
    normed = {name.rpartition(".norm")[0] for name in kinds}
    standardized = {name: pretraining.ws and (source == "bit" or name in normed) for name in convs}
    conversion = Conversion(
        tensors,
        pretraining,
        {"norms": kinds, "convs": standardized},
        mapped,
        ignored,
        missing,
        notes,
        detector,
    )
    if detector:
        _move_into_detector(conversion)
    return conversion


def _is_backbone(name: str) -> bool:
    return name.startswith(("stem.", "res"))


def _move_into_detector(conversion: Conversion) -> None:
    fpn = any(name.startswith("backbone.fpn_") for name in conversion.state)

    def moved(named: Mapping[str, Any]) -> dict[str, Any]:
        return {move_into_detector(name, fpn): value for name, value in named.items()}

    conversion.state = moved(conversion.state)
    conversion.norms = {key: moved(named) for key, named in conversion.norms.items()}
    conversion.mapped = {k: move_into_detector(name, fpn) for k, name in conversion.mapped.items()}


def _translate_all(
    source: str, state: Mapping[str, Tensor], heads: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str], dict[str, Tensor]]:
    """The mapped names, the ignored ones with reasons, and the mapped tensors."""
    mapped: dict[str, str] = {}
    ignored: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    unknown = []
    normed = set(heads.values())
    for key, tensor in state.items():
        name, reason = (heads[key], "") if key in heads else translate(source, key)
        if name is not None and name.endswith(".bias") and f"{name[:-5]}.norm.bias" in normed:
            name = None
        if name is not None:
            if name in tensors:
                raise ValueError(f"two keys are {name}: {key} and another")
            mapped[key], tensors[name] = name, tensor
        elif reason and not (heads and reason == HEAD):
            ignored[key] = reason
        elif key.endswith("_b") and not tensor.any():
            ignored[key] = "a bias of zero before a norm"  # Detectron's blobs have them
        else:
            unknown.append(f"{key} {tuple(tensor.shape)}")
    if unknown and heads:
        raise ValueError(
            f"{len(unknown)} of {len(state)} keys have no place in a Faster or Mask R-CNN of "
            f"detectron2: {', '.join(unknown[:_SHOWN])}; --backbone-only leaves neck and heads out"
        )
    if unknown:
        shown = "\n  ".join(unknown[:_SHOWN])
        raise ValueError(
            f"{len(unknown)} of {len(state)} keys have no place in a ResNet of detectron2 (7x7 "
            "stem, post-activation blocks, 1x1 shortcuts) as weights from "
            f"{SOURCES[source].title} (source {source!r}). The first:\n  {shown}"
        )
    if source == "sn_detection" and any(re.search(r"bn1\.weight$|_bn_s$", key) for key in mapped):
        raise ValueError(
            "these are frozen BNs, folded to an affine map: take detectron2's own weights, such as "
            "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
        )
    return mapped, ignored, tensors


def _check_complete(
    tensors: Mapping[str, Tensor], kinds: Mapping[str, str], detector: bool
) -> list[str]:
    """Names of the stages that are not there; raises where part of a stage or a head is not."""
    stages: dict[int, dict[int, set[str]]] = {2: {0: set()}}
    for key in tensors:
        match = re.match(r"res(\d)\.(\d+)\.(conv\d|shortcut)\.", key)
        if match:
            stage = stages.setdefault(int(match[1]), {})
            stage.setdefault(int(match[2]), set()).add(match[3])
    convs = {name for stage in stages.values() for names in stage.values() for name in names}
    last = "conv3" if "conv3" in convs else "conv2"
    wanted = ["stem.conv1"]
    for number, stage in stages.items():
        for block in range(max(stage) + 1):
            names = stage.get(block, set()) | {"conv1", "conv2", last}
            first, final = (
                tensors.get(f"res{number}.{block}.{conv}.weight") for conv in ("conv1", last)
            )
            if first is not None and final is not None and first.shape[1] != final.shape[0]:
                names = names | {"shortcut"}
            wanted += [f"res{number}.{block}.{name}" for name in sorted(names)]
    lacking = [f"{conv}.weight" for conv in wanted if f"{conv}.weight" not in tensors]
    lacking += [f"{conv}.norm" for conv in wanted if f"{conv}.norm" not in kinds]
    if detector:
        lacking += missing_heads(tensors)
    if lacking:
        raise ValueError(
            f"{len(lacking)} weights or norms are missing, such as {', '.join(lacking[:_SHOWN])}: "
            "a model would keep random values there"
        )
    for conv in (name.removesuffix(".norm") for name in kinds):
        # BCN's own weight is one per group, its inner one per channel.
        inner = tensors.get(f"{conv}.norm.bn.weight")
        width = len(tensors[f"{conv}.norm.weight"] if inner is None else inner)
        if width != len(tensors[f"{conv}.weight"]):
            raise ValueError(
                f"{conv}.norm has {width} channels, its convolution has "
                f"{len(tensors[f'{conv}.weight'])}"
            )
    return [f"res{number}" for number in range(2, 6) if number not in stages]
