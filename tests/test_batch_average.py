"""tools/batch_average.py does for any checkpoint what a run does after its last step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.tiny_training import differing, prepare, training
from tests.test_setup import load_tool
from wsbcn_d2.engine import ConfigError
from wsbcn_d2.norms import SwitchNorm2d

tool = load_tool("batch_average")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("average")
    prepare(folder)
    text = (folder / "tiny.py").read_text() + "from wsbcn_d2.modeling import use_norm\n"
    for norm in ("SN", "GN"):
        # A config that a user could have written.
        (folder / f"{norm}.py").write_text(f"{text}use_norm(model, {norm!r})\n")
        two = ["dataloader.train.total_batch_size=2", "train.images_per_gpu=2"]
        training(folder, norm, *two, "train.max_iter=2", norm=norm)
    return folder


def test_running_statistics_become_averages_and_all_else_stays(folder: Path) -> None:
    source, target = folder / "SN" / "model_final.pth", folder / "averaged.pth"
    seen: list[torch.Tensor] = []

    def observe(norm: SwitchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        if norm.training:
            seen.append(inputs[0].mean((0, 2, 3)))

    build = torch.nn.Module.to

    def observing(module: torch.nn.Module, *args: object) -> torch.nn.Module:
        module.backbone.bottom_up.stem.conv1.norm.register_forward_pre_hook(observe)
        return build(module, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detectron2.modeling.GeneralizedRCNN.to", observing, raising=False)
        tool.batch_average(str(source), str(target), str(folder / "SN.py"), 2, 3)
    before, after = (torch.load(path, weights_only=True) for path in (source, target))
    changed = {name.rpartition(".")[2] for name in differing(before, after)}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert len(seen) == 3
    stem = after["model"]["backbone.bottom_up.stem.conv1.norm.running_mean"]
    torch.testing.assert_close(stem, torch.stack(seen).mean(0))


def test_a_model_without_batch_averages_is_refused(folder: Path) -> None:
    source, target = folder / "GN" / "model_final.pth", folder / "no.pth"
    with pytest.raises(ConfigError, match="no norm with a batch average"):
        tool.batch_average(str(source), str(target), str(folder / "GN.py"), 1, 1)
    assert not target.exists()


def test_a_missing_file_is_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config-file", str(folder / "SN.py"), "--images-per-gpu", "1"]
    with pytest.raises(SystemExit, match=r"batch_average\.py: error: .*nowhere\.pth"):
        tool.main([str(folder / "nowhere.pth"), str(folder / "out.pth"), *config])
    with pytest.raises(SystemExit, match=r"batch_average\.py: error: .*nowhere\.pth is not there"):
        tool.main([str(folder / "nowhere.pth"), "out.pth", "--images-per-gpu", "1"])


def test_without_the_runs_config_beside_the_file_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "model.pth").touch()
    with pytest.raises(SystemExit, match=r"config\.yaml is not there: .* with --config-file"):
        tool.main([str(tmp_path / "model.pth"), "out.pth", "--images-per-gpu", "1"])
