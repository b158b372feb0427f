"""tools/communication_volume.py: its counts against the model's own layers, and its formula."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import instantiate

import wsbcn_d2
from wsbcn_d2.modeling import use_norm
from wsbcn_d2.norms import BatchChannelNorm2d, SyncSwitchNorm2d

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "communication_volume.py"
RECIPE = "common/models/mask_rcnn_r18_fpn"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("communication_volume", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_prediction_is_the_ring_and_its_latency(tool):
    reduce = tool.Collective("norm", "forward", "all_reduce", 100, 800)
    gather = tool.Collective("norm", "forward", "all_gather", 100, 400)
    # 8 GPUs: 2 * 7 / 8 * 800 bytes at 1 kB/s; 3 messages of 2 s there, and 3 back.
    assert tool.predict([reduce], 8, 1e3, 2.0) == pytest.approx(1.4 + 12)
    assert tool.predict([gather], 8, 1e3, 2.0) == pytest.approx(2.8 + 6)
    assert tool.predict([reduce, gather], 8, 1e3, 0.0) == pytest.approx(1.4 + 2.8)
    assert tool.predict([reduce, gather], 1, 1e3, 2.0) == 0
    assert tool.predict([reduce], 5, 1e9, 1.0) == pytest.approx(6)


@pytest.mark.slow
def test_counts_are_those_of_the_models_layers(tmp_path):
    names = ["GN", "SyncSN", "BCN"]
    process = subprocess.run(
        [sys.executable, str(SCRIPT), "--recipe", RECIPE, "--freeze-at", "0", "--json"]
        + ["--norms", *names],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    counts = json.loads(process.stdout.splitlines()[-1])
    for name in names:
        config = use_norm(wsbcn_d2.get_config(RECIPE).model, name)
        config.backbone.bottom_up.freeze_at = 0
        model = instantiate(config)
        layers = [
            m for m in model.modules() if isinstance(m, SyncSwitchNorm2d | BatchChannelNorm2d)
        ]
        forward = sorted(2 * layer.num_features + 1 for layer in layers)
        backward = sorted(2 * layer.num_features for layer in layers) if name == "SyncSN" else []
        found = {"forward": [], "backward": []}
        gradients = 0
        for source, phase, kind, numbers, size in counts[name]:
            if source == "gradient":
                gradients += size
                continue
            found[phase].append(numbers)
            assert kind == "all_reduce" and size == 8 * numbers
        assert (sorted(found["forward"]), sorted(found["backward"])) == (forward, backward)
        assert gradients == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert not [row for row in counts["GN"] if row[0] == "norm"] and len(counts["SyncSN"]) > 40
