"""Saving, loading, and the warnings on the way."""

import logging
import os
import pickle
import sys

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn

import wsbcn_d2
from wsbcn_d2.checkpoint import CheckpointError, WSBCNCheckpointer


def gn_model(ws=False):
    model = nn.Sequential(Conv2d(3, 8, 3, bias=False, norm=nn.GroupNorm(2, 8)))
    return wsbcn_d2.standardize_convs(model) if ws else model


@pytest.fixture
def warnings(monkeypatch):
    """Messages of warnings, whatever the loggers of an earlier test are set to."""
    messages = []
    logger = logging.getLogger("wsbcn_d2.checkpoint.checkpointer")
    monkeypatch.setattr(logger, "warning", lambda m, *args: messages.append(m % args))
    return messages


def test_a_round_trip_restores_everything_without_a_warning(tmp_path, warnings):
    model = gn_model(ws=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    checkpointer = WSBCNCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_0000003", iteration=3)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000003.pth"]

    other = gn_model(ws=True)
    rest = WSBCNCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 3
    assert torch.equal(other[0].weight, model[0].weight)
    assert warnings == []


def test_a_resume_reads_its_checkpoint_once(tmp_path, monkeypatch):
    checkpointer = WSBCNCheckpointer(gn_model(), str(tmp_path))
    checkpointer.save("model_0000003")
    read = []
    module = sys.modules["wsbcn_d2.checkpoint.checkpointer"]
    monkeypatch.setattr(
        module, "read_checkpoint", lambda path: read.append(path) or torch.load(path)
    )
    checkpointer.resume_or_load("", resume=True)
    assert read == [str(tmp_path / "model_0000003.pth")]
    checkpointer.load(read[0])
    assert len(read) == 2


def test_gn_weights_in_a_ws_model_warn_loudly_and_name_both(tmp_path, warnings):
    WSBCNCheckpointer(gn_model(), str(tmp_path)).save("gn")
    path = str(tmp_path / "gn.pth")
    WSBCNCheckpointer(gn_model(ws=True)).load(path)
    (message,) = warnings
    assert "MODEL DIFFERS" in message and path in message
    assert "0 of 1 convolutions in the checkpoint, 1 in the model" in message


def test_weights_of_unknown_origin_are_inferred(tmp_path, warnings):
    path = str(tmp_path / "plain.pth")
    bn = nn.Sequential(Conv2d(3, 8, 3, bias=False, norm=nn.BatchNorm2d(8)))
    torch.save(bn.state_dict(), path)
    WSBCNCheckpointer(gn_model()).load(path)
    (message,) = warnings
    assert "checkpoint has BN, model has GN" in message


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = gn_model()
    checkpointer = WSBCNCheckpointer(model, str(tmp_path))
    checkpointer.save("good")
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"0\.weight is not finite.*good\.pth"):
        checkpointer.save("bad")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "good.pth")
    assert not (tmp_path / "bad.pth").exists()


def test_a_failing_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    checkpointer = WSBCNCheckpointer(gn_model(), str(tmp_path))
    checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def fill_the_disk(data, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="no space"):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before


def test_numbered_checkpoints_are_listed_in_order(tmp_path):
    checkpointer = WSBCNCheckpointer(gn_model(), str(tmp_path))
    for name in ("model_0000009", "model_final", "model_0000004"):
        checkpointer.save(name)
    names = [os.path.basename(path) for path in checkpointer.periodic_checkpoints()]
    assert names == ["model_0000004.pth", "model_0000009.pth"]
    assert WSBCNCheckpointer(gn_model(), str(tmp_path / "none")).periodic_checkpoints() == []


# --- refused -----------------------------------------------------------------------------------


def head(classes):
    return nn.Sequential(gn_model(), nn.Conv2d(8, classes, 1))


def test_weights_without_any_parameter_of_the_model_are_refused(tmp_path):
    torch.save({"model": {"stage1.w": torch.ones(3)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"its keys are stage1\.w, the model's 0\.weight"):
        WSBCNCheckpointer(gn_model()).load(str(tmp_path / "other.pth"))


def test_an_evaluation_needs_every_parameter(tmp_path):
    WSBCNCheckpointer(nn.Sequential(gn_model()), str(tmp_path)).save("backbone")
    path = str(tmp_path / "backbone.pth")
    WSBCNCheckpointer(head(3)).load(path)
    with pytest.raises(CheckpointError, match=r"lacks 2 of the model's 5 par.*: 1\.bias, 1\.we"):
        WSBCNCheckpointer(head(3), complete=True).load(path)


@pytest.mark.parametrize("content", [{"epoch": 3, "state_dict": {}}, [1, 2], {"model": "resnet50"}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth has no state dict"):
        WSBCNCheckpointer(gn_model()).read(str(tmp_path / "x.pth"))


def test_a_file_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for method in ("read", "load"):
        with pytest.raises(CheckpointError, match=rf"a\.pth is not there .*{tmp_path}/a\.pth"):
            getattr(WSBCNCheckpointer(gn_model()), method)("a.pth")
    with pytest.raises(CheckpointError, match=r"is a folder; .*it has no \.pth file"):
        WSBCNCheckpointer(gn_model()).load(str(tmp_path))


def test_a_url_that_cannot_be_fetched_says_so(monkeypatch):
    checkpointer = WSBCNCheckpointer(gn_model())

    def refuse(path):
        raise OSError("no route to host")

    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", refuse)
    with pytest.raises(CheckpointError, match=r"cannot get https://x/y\.pkl: no route"):
        checkpointer.load("https://x/y.pkl")


def test_a_pickle_of_detectron2s_model_zoo_loads_and_one_with_code_does_not(tmp_path):
    arrays = {key: x.numpy() for key, x in gn_model().state_dict().items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "d2"}))
    (tmp_path / "caffe2.pkl").write_bytes(pickle.dumps({"blobs": {**arrays, "w_momentum": 1}}))
    model = gn_model()
    WSBCNCheckpointer(model).load(str(tmp_path / "zoo.pkl"))
    assert torch.equal(model[0].weight, torch.from_numpy(arrays["0.weight"]))
    found = WSBCNCheckpointer(model).read(str(tmp_path / "caffe2.pkl"))
    assert found["matching_heuristics"] and list(found["model"]) == list(arrays)
    (tmp_path / "code.pkl").write_bytes(pickle.dumps({"model": os.getcwd}))
    with pytest.raises(CheckpointError, match=r"objects other than tensors .*getcwd"):
        WSBCNCheckpointer(model).load(str(tmp_path / "code.pkl"))
