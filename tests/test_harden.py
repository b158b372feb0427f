"""tools/harden.py: the hardened model is SN with ratios of 0 and 1, and stays so in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.engine.tiny_training import prepare, training
from tests.norms.oracles import randomize
from tests.test_setup import load_tool
from wsbcn_d2.norms import SparseSwitchNorm2d, SwitchNorm2d

tool = load_tool("harden")


def networks(kind: type[SwitchNorm2d]) -> nn.Module:
    return nn.Sequential(
        kind(4), nn.Conv2d(4, 4, 3), kind(4, num_groups=2), kind(4, statistics=("in", "ln"))
    )


def test_a_hardened_checkpoint_is_sn_with_ratios_of_zero_and_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = networks(SwitchNorm2d)
    randomize(trained, 0)
    norms = {"0": "SyncSN", "2": "SN", "3": "SN_IN_LN"}
    torch.save({"model": trained.state_dict(), "norms": {"norms": norms}}, tmp_path / "soft.pth")
    assert tool.main([str(tmp_path / "soft.pth"), str(tmp_path / "hard.pth")]) == 0
    assert "4 mean and 4 var ratios are hard" in capsys.readouterr().out
    checkpoint = torch.load(tmp_path / "hard.pth", weights_only=True)
    assert checkpoint["norms"]["norms"] == {"0": "SSN", "2": "SSN", "3": "SSN"}
    hard = networks(SparseSwitchNorm2d)
    hard.load_state_dict(checkpoint["model"])
    # The oracle: controls so far apart that softmax is one-hot.
    for layer in (trained[0], trained[2], trained[3]):
        for controls in (layer.mean_weight, layer.var_weight):
            largest = controls.detach() == controls.detach().amax(-1, keepdim=True)
            controls.data = torch.where(largest, 1e4, -1e4)
    x = torch.randn(3, 4, 9, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(hard.eval()(x), trained.eval()(x))
    chosen = set(hard[0].mean_fixed.tolist() + hard[0].var_fixed.tolist())
    assert set(hard[0].used_statistics()) == {("in", "ln", "bn")[k] for k in chosen}
    # In training they stay what they are, whatever the radius of a ramp that starts anew.
    hard[0].set_radius(0.0)
    torch.testing.assert_close(hard.train()(x), trained.train()(x))
    hard(x).sum().backward()
    assert not hard[0].mean_weight.grad.any()


def test_ratios_only_leave_the_weights_out(tmp_path: Path) -> None:
    torch.save(networks(SwitchNorm2d).state_dict(), tmp_path / "soft.pth")
    tool.main([str(tmp_path / "soft.pth"), str(tmp_path / "hard.pth"), "--ratios-only"])
    state = torch.load(tmp_path / "hard.pth", weights_only=True)["model"]
    assert len(state) == 3 * 5 and "0.mean_fixed" in state and "1.weight" not in state


def test_the_commands_train_with_the_ratios_that_they_were_given(tmp_path: Path) -> None:
    """Finetuning has the trained weights, training from scratch others; neither chooses anew."""
    prepare(tmp_path)
    both = "train.images_per_gpu=2", "train.max_iter=2", "train.checkpointer.period=2"
    soft = training(tmp_path, "soft", *both, norm="SN")
    state, stem = soft["model"], "backbone.bottom_up.stem.conv1.weight"
    state[stem] += 1
    generator = torch.Generator().manual_seed(0)
    largest = {}
    for name in [name for name in state if name.endswith(("mean_weight", "var_weight"))]:
        state[name].normal_(generator=generator)
        largest[name] = state[name].argmax(-1).reshape(1)
    torch.save(soft, tmp_path / "soft.pth")
    assert {int(choice) for choice in largest.values()} == {0, 1, 2}
    for options in [], ["--ratios-only"]:
        tool.main([str(tmp_path / "soft.pth"), str(tmp_path / "hard.pth"), *options])
        # A rate of 0: what is left in the end is what was loaded.
        start = f"train.init_checkpoint={tmp_path / 'hard.pth'}", "optimizer.lr=0"
        trained = training(tmp_path, f"hard{len(options)}", *both, *start, norm="SSN")["model"]
        for controls, choice in largest.items():
            assert torch.equal(trained[controls.replace("_weight", "_fixed")], choice), controls
            assert torch.equal(trained[controls], state[controls])
        assert torch.equal(trained[stem], state[stem]) != bool(options)


def test_a_model_without_sn_is_named(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 1, 1).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(SystemExit, match="no SN or SyncSN layer"):
        tool.main([str(tmp_path / "plain.pth"), str(tmp_path / "hard.pth")])
