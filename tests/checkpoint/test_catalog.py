"""wsbcn://: downloaded from a server on this machine, converted, kept."""

import hashlib
import logging
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from tests.checkpoint.published import Reference, ReleasedSN, WSConv, norms_named
from tests.checkpoint.test_convert import detector
from wsbcn_d2 import recipes
from wsbcn_d2.checkpoint import (
    CATALOG,
    SOURCES,
    CheckpointError,
    WSBCNCheckpointer,
    convert_state,
    register_catalog,
)
from wsbcn_d2.checkpoint.catalog import WeightsHandler
from wsbcn_d2.checkpoint.entries import Entry

ROOT = Path(__file__).resolve().parents[2]


class Server(ThreadingHTTPServer):
    """Serves a folder and counts what it was asked for."""

    def __init__(self, folder):
        self.asked = []
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with Server(tmp_path / "served") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.folder = tmp_path / "served"
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def gn_ws():
    norm = partial(nn.GroupNorm, 32)
    return Reference(norm, WSConv, layers=(1, 1, 1, 1), rename=norms_named("gn"))


def put(server, monkeypatch, state, **entry):
    torch.save({"state_dict": state}, server.folder / "weights.pth")
    entry.setdefault("options", {"source": "mmdet", "ws": True})
    monkeypatch.setitem(CATALOG, "mine", Entry(f"{server.url}/weights.pth", **entry))


def test_a_name_is_downloaded_converted_and_loaded_once(server, monkeypatch, gn_ws):
    put(server, monkeypatch, gn_ws.state())
    model = detector(convert_state(gn_ws.state(), ws=True), "GN")
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    WSBCNCheckpointer(model).load("wsbcn://mine")
    body = model["backbone"]["bottom_up"]
    assert torch.equal(body.res5[0].conv3.weight, gn_ws.network.layer4[0].conv3.weight)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    path = PathManager.get_local_path("wsbcn://mine")
    assert PathManager.get_local_path("wsbcn://mine") == path
    assert server.asked == ["/weights.pth"]
    assert torch.load(path, weights_only=True)["pretraining"]["ws"] is True


def test_other_options_are_other_weights(server, monkeypatch, gn_ws):
    put(server, monkeypatch, gn_ws.state())
    first = PathManager.get_local_path("wsbcn://mine")
    put(server, monkeypatch, gn_ws.state(), options={"source": "mmdet", "ws": False})
    second = PathManager.get_local_path("wsbcn://mine")
    assert first != second and not torch.load(second)["pretraining"]["ws"]


def test_processes_that_ask_at_once_share_one_conversion(server, monkeypatch, gn_ws):
    put(server, monkeypatch, gn_ws.state())
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(PathManager.get_local_path("wsbcn://mine")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4 and len(set(paths)) == 1
    assert server.asked == ["/weights.pth"]


def test_a_damaged_download_is_deleted_and_said(server, monkeypatch, gn_ws):
    put(server, monkeypatch, gn_ws.state(), sha256="00000000")
    with pytest.raises(CheckpointError, match=r"weights\.pth has the hash \w{8}…, not 00000000"):
        PathManager.get_local_path("wsbcn://mine")
    digest = hashlib.sha256((server.folder / "weights.pth").read_bytes()).hexdigest()
    put(server, monkeypatch, gn_ws.state(), sha256=digest[:8])
    PathManager.get_local_path("wsbcn://mine")
    assert server.asked == ["/weights.pth"] * 2


def test_a_download_that_fails_is_told_by_the_checkpointer(server, monkeypatch):
    entry = Entry(f"{server.url}/none.pth", {"source": "mmdet", "ws": True})
    monkeypatch.setitem(CATALOG, "mine", entry)
    with pytest.raises(CheckpointError, match=r"cannot get wsbcn://mine: .*404"):
        WSBCNCheckpointer(nn.Linear(1, 1)).load("wsbcn://mine")


def test_what_only_a_browser_gets_is_put_in_place_by_hand(server, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"Google Drive.*id=17mHmo\S+ , save the file as"
    ) as error:
        PathManager.get_local_path("wsbcn://resnet50_sn_8x32")
    place = tmp_path / "cache/wsbcn_d2/original/ResNet50v1+SN(8,32)-77.49.pth"
    assert str(place) in str(error.value)
    state = Reference(ReleasedSN, rename=norms_named("sn"), layers=(1, 1, 1, 1)).state()
    torch.save({"model": "resnetv1sn50", "state_dict": state}, place)
    path = PathManager.get_local_path("wsbcn://resnet50_sn_8x32")
    assert torch.load(path)["pretraining"]["minibatch"] == 32


def test_an_unknown_name_shows_the_nearest():
    with pytest.raises(ValueError, match=r"wsbcn://resnet50_gnws is not in .*resnet50_gn_ws"):
        PathManager.get_local_path("wsbcn://resnet50_gnws")


def test_the_handler_reads_and_says_what_there_is(server, monkeypatch, gn_ws):
    put(server, monkeypatch, gn_ws.state())
    assert PathManager.exists("wsbcn://mine") and not PathManager.exists("wsbcn://other")
    assert PathManager.isfile("wsbcn://mine")
    with PathManager.open("wsbcn://mine", "rb") as file:
        assert torch.load(file)["norms"]["norms"]["stem.conv1.norm"] == "GN"
    with pytest.raises(ValueError, match=r"mode \('wb'\) must be"):
        PathManager.open("wsbcn://mine", "wb")


def test_registering_again_changes_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        register_catalog()
        register_catalog()
    assert caplog.records == []
    assert PathManager.exists(f"{WeightsHandler.PREFIX}resnet50_gn_ws")


def test_the_docs_have_every_name_and_its_address():
    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*<(\S+)>", text, re.M))
    assert rows == {name: entry.url for name, entry in CATALOG.items()}


def test_detectors_have_the_names_of_the_recipes_that_evaluate_them():
    leaves = {name.rpartition("/")[2] for name in recipes.list_configs()}
    detectors = {name for name in CATALOG if "_rcnn_" in name}
    assert len(detectors) > 20 and detectors <= leaves


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_is_complete(name):
    entry = CATALOG[name]
    assert entry.url.startswith(("https://", "http://cs.jhu.edu/"))
    assert entry.options["source"] in SOURCES
    assert bool(entry.file) == ("drive.google" in entry.url)
    # Where batch statistics were used, their minibatch is known.
    if entry.options["source"] in ("torchvision", "sn", "ssn") or "_sn_" in name:
        assert entry.options["minibatch"] >= 1
    if entry.options["source"] == "mmdet":
        assert entry.options["ws"] is ("_ws" in name)
    # torch.hub's, openmmlab's and timm's names end with the start of the hash.
    assert entry.sha256 == "".join(re.findall(r"-([0-9a-f]{8})\.pth$", entry.url))
