"""Exported detectors give the model's results at other image sizes; what cannot be is said."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T

from tests.deploy.detectors import load, make_images
from tests.recipe_models import narrow_config
from wsbcn_d2.deploy import Detector, export_detector
from wsbcn_d2.errors import ConfigError, UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
OUTPUTS = {"pred_boxes", "pred_classes", "pred_masks", "scores", "image_size"}


def export(detector, format, path):
    images = [detector.tensor(image) for image in make_images()]
    return export_detector(detector, images, format, str(path))


@pytest.mark.parametrize("name", ["WS+BCN", "hard SSN"])
def test_torchscript_at_new_sizes(name, tmp_path):
    detector = load(tmp_path, name)
    differences = export(detector, "torchscript", tmp_path / "model.ts")
    assert set(differences) == OUTPUTS and max(differences.values()) <= 1e-3
    files = {"meta.json": ""}
    module = torch.jit.load(tmp_path / "model.ts", _extra_files=files)
    meta = json.loads(files["meta.json"])
    assert meta["classes"] == [str(i) for i in range(10)] and meta["image_format"] == "RGB"
    # A size that was not seen before.
    image = torch.rand(3, 100, 70, generator=torch.Generator().manual_seed(2)) * 255
    with torch.no_grad():
        outputs = dict(zip(meta["outputs"], module(image), strict=True))
        expected = detector.model.inference([{"image": image}], do_postprocess=False)[0]
    assert (outputs["pred_boxes"] - expected.pred_boxes.tensor).abs().max() <= 0.1
    assert (outputs["scores"] - expected.scores).abs().max() <= 1e-3


def test_onnx_in_onnxruntime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    detector = load(tmp_path, "SyncSN")
    differences = export(detector, "onnx", tmp_path / "model.onnx")
    assert set(differences) == OUTPUTS and max(differences.values()) <= 1e-3
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    meta = json.loads(session.get_modelmeta().custom_metadata_map["meta"])
    assert meta["outputs"] == [output.name for output in session.get_outputs()]
    (value,) = session.get_inputs()
    assert (value.name, value.shape) == ("image", [3, "height", "width"])


def test_one_stage_detectors_too(tmp_path):
    cfg = narrow_config("finetune/retinanet_r50_fpn_ws_gn_1x")
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    model.test_score_thresh = 0.0
    detector = Detector(model, cfg, T.AugmentationList([]), "BGR", [], "cpu")
    differences = export(detector, "torchscript", tmp_path / "model.ts")
    assert set(differences) == OUTPUTS - {"pred_masks"} and max(differences.values()) <= 1e-3


def test_torch_export_of_the_backbone(tmp_path):
    detector = load(tmp_path, "WS+BCN")
    differences = export(detector, "torch-export", tmp_path / "model.pt2")
    assert set(differences) == {"p2", "p3", "p4"} and max(differences.values()) <= 1e-3


def test_what_cannot_be_exported_is_said_and_nothing_is_written(tmp_path, monkeypatch):
    detector = load(tmp_path, "GN")
    predictor = detector.model.roi_heads.box_predictor
    predictor.test_score_thresh = 1.0
    with pytest.raises(ConfigError, match="detects nothing in any of the 2 images"):
        export(detector, "torchscript", tmp_path / "model.ts")
    predictor.test_score_thresh = 0.0
    monkeypatch.setattr("wsbcn_d2.deploy.export._TOLERANCE", -1.0)
    with pytest.raises(UserError, match="results are not the model's"):
        export(detector, "torchscript", tmp_path / "model.ts")
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="fails on an image of 96x80"),
    ):
        patch.setattr(torch.jit, "load", lambda _: lambda image: 1 / 0)
        export(detector, "torchscript", tmp_path / "model.ts")
    detector.model = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="a Linear cannot be exported"):
        export(detector, "onnx", tmp_path / "model.onnx")
    assert not list(tmp_path.glob("model.ts*")) and not list(tmp_path.glob("model.onnx*"))
