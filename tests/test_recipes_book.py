"""docs/recipes.md is what the recipes and docs/recipes/*.json make it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from tests.recipe_models import config, model_without_weights
from wsbcn_d2 import recipes

ROOT = Path(__file__).resolve().parents[1]
# By its path: a package named tools may be anybody's.
spec = importlib.util.spec_from_file_location("_list_recipes", ROOT / "tools" / "list_recipes.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

NAMES = recipes.list_configs()


def test_the_book_is_not_stale():
    rows = {n: tool.summarize(n, config(n), model_without_weights(n)) for n in NAMES}
    assert tool.BOOK.read_text() == tool.render(rows), "run tools/list_recipes.py --write"


def test_counted_parameters_are_not_stale():
    counted = {n: tool.count_parameters(model_without_weights(n)) for n in NAMES}
    assert {n: cost["parameters"] for n, cost in tool.read_data("costs").items()} == counted, (
        "run tools/list_recipes.py --count --write"
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_counted_gflops_are_not_stale():
    models = {n: model_without_weights(n) for n in NAMES}
    assert tool.read_data("costs") == tool.count_all(models)


def test_published_rows_and_results_name_recipes():
    published = tool.read_data("published")
    named = [row["recipe"] for row in published["rows"]]
    assert set(named) <= set(NAMES)
    assert {row["source"] for row in published["rows"]} == set(published["sources"])
    for result in tool.read_data("results"):
        assert result["recipe"] in NAMES
        assert {"box_ap", "log", "hardware", "commit", "command"} <= set(result)


def test_images_of_a_published_step_are_the_recipes():
    for row in tool.read_data("published")["rows"]:
        if row["gpus"] is None:  # the source does not say
            continue
        total = config(row["recipe"]).dataloader.train.total_batch_size
        assert row["gpus"] * row["images_per_gpu"] == total


@pytest.mark.parametrize("name", ["finetune/faster_rcnn_x50_32x4d_fpn_gn_1x"])
def test_gflops_are_fvcores(name):
    # fvcore traces real tensors, part by part; the tool adds up shapes.
    model = tool.build(config(name)).to_empty(device="cpu").eval()
    image = torch.zeros(1, 3, 64, 96)
    features = model.backbone(image)
    levels = [features[key] for key in model.proposal_generator.in_features]
    boxes = torch.zeros(5, 256, 7, 7)
    heads = model.roi_heads

    def fvcore(part, *inputs):
        counts = FlopCountAnalysis(part, inputs).unsupported_ops_warnings(False)
        return sum(n for op, n in counts.by_operator().items() if op in ("conv", "linear"))

    heads_of_5 = fvcore(heads.box_head, boxes) + fvcore(heads.box_predictor, heads.box_head(boxes))
    expected = fvcore(model.backbone, image) + fvcore(model.proposal_generator.rpn_head, levels)
    proposals = model.proposal_generator.post_nms_topk[False]
    expected += heads_of_5 * proposals / 5
    counted = tool.count_gflops(tool.build(config(name)), 64, 96)
    assert counted == pytest.approx(expected / 1e9, rel=1e-6)


def test_results_appear_in_the_book(monkeypatch):
    name = "quick/mask_rcnn_r18_fpn_gn"
    data = {key: tool.read_data(key) for key in ("costs", "published")}
    result = {"recipe": name, "box_ap": 12.34, "mask_ap": 5.0, "log": "a/log.txt"}
    result |= {"hardware": "2 CPUs", "commit": "abc1234", "command": "make train"}
    row = tool.summarize(name, config(name), model_without_weights(name))
    monkeypatch.setattr(tool, "read_data", {**data, "results": [result]}.__getitem__)
    assert tool.complete(name, row)["ours"].startswith("12.3 / 5.0 ([log](a/log.txt), 2 CPUs, abc")
    monkeypatch.setattr(tool, "read_data", {**data, "results": []}.__getitem__)
    assert tool.complete(name, row)["ours"] == "not run"


def test_listing_prints_the_recipes_that_match(capsys):
    assert tool.main(["r18_fpn_ws"]) == 0
    names = re.findall(r"`(quick/\w+)`", capsys.readouterr().out)
    assert names == ["quick/mask_rcnn_r18_fpn_ws_bcn", "quick/mask_rcnn_r18_fpn_ws_gn"]
    with pytest.raises(SystemExit):
        tool.main(["no such recipe"])
