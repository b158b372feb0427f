"""From a folder of JPEG files with labels to an ONNX file that finds what the model finds."""

from __future__ import annotations

import glob
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.own_data import NAMES, WITH_MASKS, WRITERS, make_objects
from tests.test_setup import ROOT, load_tool
from wsbcn_d2.deploy import load_detector
from wsbcn_d2.engine import argument_parser, run
from wsbcn_d2.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
# Three steps teach nothing: every box counts.
SMALL = [
    *("train.max_iter=3", "train.eval_period=0", "train.checkpointer.period=0", "train.device=cpu"),
    *("model.roi_heads.box_predictor.test_score_thresh=0.0", "dataloader.train.num_workers=0"),
    *("model.roi_heads.box_predictor.test_topk_per_image=10", "dataloader.test.num_workers=0"),
    *("train.vis.num_images=1", "train.vis.score_threshold=0.0"),
]


def train(*words: str) -> None:
    run(argument_parser().parse_args([*words, *SMALL]))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSBCN_D2_CACHE", str(tmp_path / "cache"))
    return tmp_path


def compare(onnx_file: str, images: list[str]) -> None:
    """What README-like code around onnxruntime finds, with what the model finds."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file)
    meta = json.loads(session.get_modelmeta().custom_metadata_map["meta"])
    detector = load_detector("output/config.yaml", "output/model_final.pth")
    assert meta["classes"] == NAMES
    for file in images:
        pixels = np.asarray(Image.open(file).convert("RGB"), np.float32).transpose(2, 0, 1)
        found = dict(zip(meta["outputs"], session.run(None, {"image": pixels}), strict=True))
        with torch.no_grad():
            inputs = [{"image": torch.from_numpy(pixels)}]
            expected = detector.model.inference(inputs, do_postprocess=False)[0]
        assert len(found["scores"]) == len(expected) > 0
        boxes = expected.pred_boxes.tensor.numpy()
        assert np.abs(found["pred_boxes"] - boxes).max() <= 1e-3 * max(pixels.shape)
        assert np.abs(found["scores"] - expected.scores.numpy()).max() <= 1e-3
        assert np.array_equal(found["pred_classes"], expected.pred_classes.numpy())
        if expected.has("pred_masks"):
            assert np.abs(found["pred_masks"] - expected.pred_masks.numpy()).max() <= 1e-3


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind == "csv" else pytest.mark.slow) for kind in WRITERS],
)
def test_from_labelled_images_to_onnx(kind, folder):
    (folder / "mine").mkdir()
    WRITERS[kind](folder / "mine", make_objects(count=10))
    recipe = "quick/mask_rcnn_r18_fpn_ws_gn"
    train("--config-file", recipe, "--dataset", "mine", "train.output_dir=output")
    (folder / "mine").rename(folder / "elsewhere")  # the model needs the data no more
    images = sorted(glob.glob("elsewhere/**/*.jpg", recursive=True))[:3]
    assert len(images) == 3
    tool = load_tool("export_model")
    words = ["--config-file", "output/config.yaml", "--weights", "output/model_final.pth"]
    tool.main([*words, "--output", "model.onnx", *images])
    compare("model.onnx", images)
    config = (folder / "output" / "config.yaml").read_text()
    assert ("mask_head" in config) is (kind in WITH_MASKS)
    assert (folder / "output" / "predictions.png").exists()


def test_every_command_of_the_page_runs(folder, capsys):
    text = (ROOT / "docs" / "own_data.md").read_text()
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    ran = []
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "docs/own_data.md", "exec"), {})
            continue
        for line in code.replace("\\\n", " ").splitlines():
            program, script, *words = shlex.split(line, comments=True)
            assert program == "python"
            words = [name for word in words for name in (sorted(glob.glob(word)) or [word])]
            ran.append(Path(script).stem)
            if script == "train_net.py":
                train(*words)
                continue
            if script == "tools/write_digits.py":
                words += ["--images", "12"]  # 112 with those to validate on
            load_tool(ran[-1]).main(words)
    assert set(ran) == {
        *("write_digits", "check_dataset", "train_net", "predict", "export_model", "fold_model"),
        *("browse", "compare_runs"),
    }
    output = capsys.readouterr().out
    assert "100 validation images" in output and "loads with detectron2 alone" in output
    for name in (
        "report.html",
        "browse.html",
        "runs.png",
        "mine.onnx",
        "mine.ts",
        "output/mine/folded/config.yaml",
    ):
        assert Path(name).is_file(), name


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_digits_are_written_as_they_are(kind, folder):
    from wsbcn_d2.data.formats import read_own_data

    tool = load_tool("write_digits")
    tool.main(["mine", "--format", kind, "--images", "3"])
    own = read_own_data("mine")
    assert own.classes == [str(i) for i in range(10)] and own.masks is (kind == "coco")
    assert (own.train.num_images, own.val.num_images) == (3, 100)
    (file,) = (folder / "cache").glob("digits*/annotations/*_val.json")
    source = json.loads(file.read_text())
    found = json.loads(Path(own.val.json_file).read_text())
    assert len(found["annotations"]) == len(source["annotations"])
    boxes = [[a["bbox"] for a in content["annotations"]] for content in (found, source)]
    # YOLO has six digits, of about 200 pixels.
    assert np.abs(np.array(boxes[0]) - np.array(boxes[1])).max() < 1e-3


def test_a_run_without_its_data_says_so(folder):
    (folder / "mine").mkdir()
    WRITERS["csv"](folder / "mine", make_objects(count=4))
    (folder / "mine" / "images" / "000.jpg").unlink()
    with pytest.raises(UserError, match=r"boxes\.csv:2: its image is not there"):
        train("--config-file", "quick/mask_rcnn_r18_fpn_gn", "--dataset", "mine")
    assert not (folder / "output").exists()
