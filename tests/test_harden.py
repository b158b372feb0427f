"""tools/harden.py: the hardened model is SN with ratios of 0 and 1, and stays so in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

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


def test_a_model_without_sn_is_named(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 1, 1).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(SystemExit, match="no SN or SyncSN layer"):
        tool.main([str(tmp_path / "plain.pth"), str(tmp_path / "hard.pth")])
