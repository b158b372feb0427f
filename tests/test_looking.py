"""tools/browse.py and tools/compare_runs.py."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.own_data import WRITERS, make_objects
from tests.test_setup import load_tool


def test_browse_shows_what_training_sees(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WSBCN_D2_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    WRITERS["coco"](tmp_path / "mine", make_objects(count=6))
    recipe = ["--config-file", "quick/mask_rcnn_r18_fpn_gn", "--dataset", str(tmp_path / "mine")]
    words = [*recipe, "--images", "5", "--output", str(tmp_path / "page.html")]
    load_tool("browse").main([*words, "dataloader.train.num_workers=0"])
    page = (tmp_path / "page.html").read_text()
    pictures = re.findall(r"base64,([^\"]+)\".*?<figcaption>([^<]+)<", page)
    assert len(pictures) == 5 and "5 images" in capsys.readouterr().out
    for data, caption in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert f"{image.width} × {image.height}, " in caption
        assert 128 <= min(image.size) <= 176  # as the recipe's augmentation resizes
        assert not caption.endswith(" 0 objects")


def write_run(folder, slope: float) -> None:
    folder.mkdir()
    lines = [{"iteration": 10 * i, "total_loss": 3 - slope * i} for i in range(60)]
    lines.append({"iteration": 600, "bbox/AP": 100 * slope})
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))


def test_curves_of_runs_lie_over_one_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", 0.01)
    write_run(tmp_path / "b", 0.02)
    tool = load_tool("compare_runs")
    tool.main(["a", "b"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].split() == ["a", "2.41", "1"] and rows[3].split() == ["b", "1.82", "2"]
    with Image.open("runs.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    for words, message in (
        (["a", "nowhere"], "nowhere/metrics.json is not there"),
        (["a", "--metrics", "total_los"], "no run has 'total_los'; did you mean total_loss?"),
    ):
        with pytest.raises(SystemExit, match=re.escape(message)):
            tool.main(words)
