"""Whole detectors for other runtimes, by detectron2's exporters."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.data import transforms as T
from detectron2.export import TracingAdapter
from detectron2.modeling import FCOS, GeneralizedRCNN, RetinaNet
from torch import Tensor, nn

from ..checkpoint.files import replacing
from ..errors import ConfigError, UserError
from .detector import Detector

__all__ = ["FORMATS", "describe_model", "export_detector"]

FORMATS = {"torchscript": ".ts", "onnx": ".onnx", "torch-export": ".pt2"}
_OPSET = 17
# The boxes, in pixels of the input; the others are numbers of about one.
_TOLERANCE = 1e-3


class _Named(TracingAdapter):
    """detectron2's adapter for one image, ``(3, H, W)``; `names` are those of its outputs."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__(model, [{"image": image}], _inference)
        self.eval()
        self(image)
        schema = self.outputs_schema.schemas[0].schemas[0]
        self.names = [*schema.keys, "image_size"]


def _inference(model: nn.Module, inputs: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
    # Masks stay 28 x 28, and boxes in pixels of the input: pasting is for who draws them.
    if isinstance(model, GeneralizedRCNN):
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]
    return model(inputs)


def describe_model(detector: Detector) -> dict[str, Any]:
    """What a user of the exported file must know: classes, order of colours, how to resize."""
    resize = [
        {"short_edge": a.short_edge_length[0], "max_size": a.max_size}
        for a in detector.augmentations.augs
        if isinstance(a, T.ResizeShortestEdge)
    ]
    return {
        "classes": detector.classes,
        "image_format": detector.image_format,
        "resize": resize[0] if resize else None,
        "input": "float32 (3, height, width), values 0 to 255",
    }


def export_detector(
    detector: Detector, images: Sequence[Tensor], format: str, output: str
) -> dict[str, float]:
    """Export a detector, and compare the file's results with the model's on every image.

    Image sizes are free. ``"torchscript"`` and ``"onnx"`` hold the whole detector from the resized
    image to its outputs: ``pred_boxes`` ``(N, 4)`` in pixels of the input, ``pred_classes``,
    ``scores`` ``(N,)``, with a mask head ``pred_masks`` ``(N, 1, 28, 28)``, which
    `detectron2.layers.paste_masks_in_image` pastes into the boxes, and ``image_size``.
    ``"torch-export"`` holds the backbone, as what follows decides on the data, which torch.export
    refuses; its input is normalized and padded, ``(1, 3, 32 h, 32 w)``.

    Args:
        detector: from `load_detector`.
        images: from `Detector.tensor`. The first in which there is a detection is traced.
        format: one of `FORMATS`.
        output: the file to write; it appears when the comparison has passed.

    Returns:
        the largest difference of each output.

    Raises:
        ConfigError: a detector that cannot be exported, and why; no image with a detection.
        UserError: the file's results are not the model's.
    """
    model = detector.model
    if not isinstance(model, (GeneralizedRCNN, RetinaNet, FCOS)):
        raise ConfigError(
            f"a {type(model).__name__} cannot be exported: detectron2 traces GeneralizedRCNN, "
            "RetinaNet and FCOS; what others return are no tensors of fixed meaning"
        )
    if format == "torch-export":
        return _export_backbone(detector, images, output)
    floats = [image.float().to(detector.device) for image in images]
    adapter = next((a for a in (_Named(model, image) for image in floats) if _finds(a)), None)
    if adapter is None:
        raise ConfigError(
            f"the model detects nothing in any of the {len(floats)} images, so its heads would not "
            "be traced; give an image with a detection, or lower the config's threshold (for R-CNN "
            "--opts model.roi_heads.box_predictor.test_score_thresh=0.01)"
        )
    meta = describe_model(detector) | {"outputs": adapter.names}
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        content, run = _to_onnx(adapter, meta) if format == "onnx" else _to_script(adapter, meta)
        differences = _compare(adapter, run, floats)
    with replacing(output) as file:
        file.write(content)
    return differences


def _finds(adapter: _Named) -> bool:
    outputs = dict(zip(adapter.names, adapter(*adapter.flattened_inputs), strict=True))
    return len(outputs["scores"]) > 0


class _quiet:
    """Without the exporters' progress, which they log as warnings."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: Any) -> None:
        logging.disable(self._before)


def _to_script(adapter: _Named, meta: dict[str, Any]) -> tuple[bytes, Any]:
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={"meta.json": json.dumps(meta)})
    buffer.seek(0)
    return buffer.getvalue(), torch.jit.load(buffer)


def _to_onnx(adapter: _Named, meta: dict[str, Any]) -> tuple[bytes, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{error}: pip install onnx onnxruntime") from None
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.onnx")
        torch.onnx.export(
            adapter,
            adapter.flattened_inputs,
            file,
            # The newer exporter refuses what torch.export does.
            dynamo=False,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=adapter.names,
            dynamic_axes={"image": {1: "height", 2: "width"}},
        )
        graph = onnx.load(file)
    onnx.checker.check_model(graph)
    onnx.helper.set_model_props(graph, {"meta": json.dumps(meta)})
    content = graph.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no common base
        raise UserError(f"onnxruntime does not load the exported graph: {error}") from error

    def run(image: Tensor) -> list[Tensor]:
        return [torch.as_tensor(x) for x in session.run(None, {"image": image.cpu().numpy()})]

    return content, run


def _compare(adapter: _Named, run: Any, images: Sequence[Tensor]) -> dict[str, float]:
    """The largest difference of each output; of boxes, as a share of the image's longer side."""
    found = dict.fromkeys(adapter.names, 0.0)
    for image in images:
        try:
            results = run(image)
        except Exception as error:  # the runtimes' have no common base
            raise UserError(
                f"the exported model fails on an image of {image.shape[2]}x{image.shape[1]} pixels "
                f"(width x height), as a graph that holds for other sizes only; nothing was "
                f"written: {error}"
            ) from error
        for name, ours, theirs in zip(adapter.names, adapter(image), results, strict=True):
            if ours.shape != theirs.shape:
                raise UserError(
                    f"the exported model finds {len(theirs)} objects in an image of "
                    f"{image.shape[2]}x{image.shape[1]} pixels (width x height), and the model "
                    f"{len(ours)}; nothing was written"
                )
            scale = max(image.shape) if name == "pred_boxes" else 1
            if ours.numel():
                difference = (
                    ours.cpu().double() - theirs.cpu().double()
                ).abs().max().item() / scale
                found[name] = max(found[name], difference)
    wrong = {name: value for name, value in found.items() if not value <= _TOLERANCE}
    if wrong:
        raise UserError(
            "the exported model's results are not the model's: they differ by "
            + ", ".join(f"{value:.2g} in {name}" for name, value in wrong.items())
            + "; nothing was written"
        )
    return found


def _export_backbone(detector: Detector, images: Sequence[Tensor], output: str) -> dict[str, float]:
    model: Any = detector.model

    def prepared(image: Tensor) -> Tensor:
        return model.preprocess_image([{"image": image.to(detector.device)}]).tensor

    divisor = model.backbone.size_divisibility or 32
    inputs = [prepared(image) for image in images]
    shapes = {axis: divisor * torch.export.Dim(name, min=2) for axis, name in ((2, "h"), (3, "w"))}
    # Sizes below are specialized on.
    example = nn.functional.interpolate(inputs[0], [divisor * 3, divisor * 4])
    program = torch.export.export(
        model.backbone, (example,), dynamic_shapes=(shapes,), strict=False
    )
    buffer = io.BytesIO()
    meta = describe_model(detector) | {"outputs": list(model.backbone.output_shape())}
    torch.export.save(program, buffer, extra_files={"meta.json": json.dumps(meta)})
    buffer.seek(0)
    run = torch.export.load(buffer).module()
    found: dict[str, float] = {}
    for x in inputs:
        ours, theirs = model.backbone(x), run(x)
        for name, value in ours.items():
            scale = value.abs().max().clamp(min=1e-12)
            difference = ((value - theirs[name]).abs().max() / scale).item()
            found[name] = max(found.get(name, 0.0), difference)
    if not all(value <= _TOLERANCE for value in found.values()):
        raise UserError(f"the exported backbone's features are not the model's: {found}")
    with replacing(output) as file:
        file.write(buffer.getvalue())
    return found
