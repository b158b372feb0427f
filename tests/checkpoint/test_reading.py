"""Reading files of others: every format, and nothing that runs code."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from wsbcn_d2.checkpoint import CheckpointError
from wsbcn_d2.checkpoint.reading import read_checkpoint, unwrap

STATE = OrderedDict(a=torch.arange(3.0), b=torch.ones(2, 2))


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def assert_is_state(found):
    assert list(found) == ["a", "b"]
    assert all(torch.equal(torch.as_tensor(found[key]), STATE[key]) for key in STATE)


@pytest.mark.parametrize("new", [True, False])
def test_torch_files_old_and_new(tmp_path, new):
    path = tmp_path / "x.pth.tar"
    torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=new)
    assert_is_state(read_checkpoint(path)["state_dict"])


@pytest.mark.parametrize("new", [True, False])
def test_numbers_of_numpy_beside_the_weights_are_no_danger(tmp_path, new):
    path = tmp_path / "x.pth"
    content = {"state_dict": STATE, "acc": np.float64(76.2), "curve": np.arange(3)}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    found = read_checkpoint(path)
    assert found["acc"] == 76.2 and found["curve"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_arrays(tmp_path, protocol):
    path = tmp_path / "x.pkl"
    content = {"blobs": OrderedDict((key, value.numpy()) for key, value in STATE.items())}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert_is_state(read_checkpoint(path)["blobs"])


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = tmp_path / "x.safetensors"
    safetensors.save_file(dict(STATE), path)
    assert_is_state(read_checkpoint(path))


@pytest.mark.parametrize("name", ["x.pth", "x.pkl"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, name):
    path = tmp_path / name
    content = {"state_dict": {"a": np.ones(2)}, "bomb": Bomb(tmp_path / "exploded")}
    if name == "x.pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"{name} holds objects .*\(\w+\.mkdir\).* --trust"):
        read_checkpoint(path)
    assert not (tmp_path / "exploded").exists()
    read_checkpoint(path, trust=True)
    assert (tmp_path / "exploded").exists()


def test_a_whole_module_is_refused_unless_trusted(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(nn.Linear(2, 3), path)
    with pytest.raises(ValueError, match=r"objects other than tensors .torch\.nn\..*Linear"):
        read_checkpoint(path)
    assert isinstance(read_checkpoint(path, trust=True), nn.Linear)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>quota exceeded</html>", "no checkpoint but a web page"),
        (b"\n<!DOCTYPE html>", "no checkpoint but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no checkpoint but a pointer of Git"),
        (b"404: Not Found", "no checkpoint but a text file, which starts with '404: Not Found'"),
        (b"", "no checkpoint but an empty file"),
        (bytes(range(128, 255)), "no checkpoint but a file of another format, or damaged"),
        (b"PK\x03\x04 and nothing else", "damaged or incomplete"),
    ],
)
def test_what_is_no_checkpoint_says_so(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x.pth is {message}"):
        read_checkpoint(path)


def test_a_file_that_is_cut_off_says_so(tmp_path):
    path = tmp_path / "x.pth"
    for new in (True, False):
        torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=new)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(ValueError, match=r"x\.pth is damaged or incomplete"):
            read_checkpoint(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.pth is not there"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        # Switchable-Normalization names the architecture there.
        lambda s: {"model": "resnetv1sn50", "state_dict": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"blobs": {key: value.numpy() for key, value in s.items()}},
        lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}},
    ],
)
def test_the_state_dict_is_found_in_its_wrappings(wrap):
    tensors, around = unwrap(wrap(STATE))
    assert_is_state(tensors)
    assert set(around) <= {"epoch", "model"}


def test_module_is_a_prefix_only_if_all_have_it():
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert set(unwrap(state)[0]) == {"module.a", "b"}


def test_what_is_no_tensor_is_kept_apart():
    tensors, around = unwrap({**STATE, "epoch": 3, "note": "x"})
    assert_is_state(tensors)
    assert around == {"epoch": 3, "note": "x"}


def test_half_precision_becomes_float32_and_integers_stay():
    tensors, _ = unwrap({"a": torch.ones(2).half(), "n": torch.tensor(3)})
    assert tensors["a"].dtype == torch.float32 and tensors["n"].dtype == torch.int64


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {}])
def test_no_tensors_is_an_error(content):
    with pytest.raises(ValueError, match=r"no tensors in the checkpoint|no state dict"):
        unwrap(content)
