"""Weights that a run cannot start from are found before any process is started."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager

from wsbcn_d2.checkpoint import WSBCNCheckpointer
from wsbcn_d2.checks.start import check_start
from wsbcn_d2.config.record import flatten_config
from wsbcn_d2.engine import ConfigError, load_config, read_config
from wsbcn_d2.recipes import config_file

QUICK = str(config_file("quick/mask_rcnn_r18_fpn_ws_gn"))


class Runs:
    """Would be made by running code, if a pickle with it were loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this ran",))


def check(*overrides: str, resume: bool = False, eval_only: bool = False) -> None:
    args = argparse.Namespace(resume=resume, eval_only=eval_only)
    check_start(read_config(load_config(QUICK, list(overrides))), args)


def save_run(folder: Path, recipe: str = "ws_gn", *overrides: str, iteration: int = 9) -> None:
    """What a run of the quick recipe leaves, with untrained weights."""
    path = str(config_file(f"quick/mask_rcnn_r18_fpn_{recipe}"))
    cfg = load_config(path, list(overrides))
    model = read_config(cfg).build_model("cpu")
    checkpointer = WSBCNCheckpointer(model, str(folder), config=flatten_config(cfg))
    checkpointer.save(f"model_{iteration:07d}", iteration=iteration)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


def test_good_weights_pass(folder: Path, tmp_path: Path) -> None:
    path = folder / "model_0000009.pth"
    check(f"train.init_checkpoint={path}")
    check(f"train.init_checkpoint={path}", eval_only=True)
    check()
    torch.save(torch.load(path), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    check(f"train.init_checkpoint={tmp_path / 'old.pth'}")


def test_an_address_is_fetched_once_before_any_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(path: str) -> str:
        fetched.append(path)
        if "missing" in path:
            raise OSError("HTTP Error 404: Not Found")
        return str(folder / "model_0000009.pth")

    monkeypatch.setattr(PathManager, "get_local_path", fetch)
    check("train.init_checkpoint='detectron2://COCO/model.pth?matching_heuristics=True'")
    assert fetched == ["detectron2://COCO/model.pth"]
    with pytest.raises(ConfigError, match=r"cannot get detectron2://missing\.pkl: HTTP Error 404"):
        check("train.init_checkpoint=detectron2://missing.pkl")


def test_a_name_that_the_catalog_does_not_have(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"init_checkpoint: .*wsbcn://resnet50_gnws.*_gn_ws"):
        check("train.init_checkpoint=wsbcn://resnet50_gnws")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("page.pth", "is no checkpoint but a web page"),
        ("pickle.pkl", r"holds objects other than tensors .*print"),
        (".", "is a folder"),
        ("nowhere.pth", r"is not there \(looked for /"),
    ],
)
def test_a_file_that_is_no_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    (tmp_path / "page.pth").write_text("<html>404</html>\n<p>")
    (tmp_path / "pickle.pkl").write_bytes(pickle.dumps({"model": Runs()}))
    with pytest.raises(ConfigError, match=expected) as caught:
        check(f"train.init_checkpoint={tmp_path / name}")
    assert str(caught.value).startswith("train.init_checkpoint: ")
    assert len(str(caught.value).splitlines()) <= 3
    assert "this ran" not in capfd.readouterr().out


def test_an_evaluation_needs_weights(folder: Path, tmp_path: Path) -> None:
    where = f"train.output_dir={tmp_path}"
    with pytest.raises(ConfigError, match=r"--eval-only needs weights: train\.init_checkpoint"):
        check(where, eval_only=True)
    with pytest.raises(ConfigError, match="--resume found no checkpoint in"):
        check(where, eval_only=True, resume=True)
    check(f"train.output_dir={folder}", eval_only=True, resume=True)


def test_a_run_resumes_with_its_own_model(folder: Path) -> None:
    check(f"train.output_dir={folder}", resume=True)
    check(f"train.output_dir={folder}", "optimizer.lr=0.5", resume=True)


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("bn", [], r"norm layers: checkpoint has GN, model has BN"),
        ("gn", [], r"weight standardization: \d+ of \d+ convolutions in the checkpoint, 0 in"),
        (
            "ws_gn",
            ["model.roi_heads.num_classes=3"],
            r"tensor\(s\) of another shape .number of classes, width., such as roi_h",
        ),
    ],
)
def test_a_resume_with_another_model_is_refused_unless_asked_for(
    folder: Path, recipe: str, overrides: list[str], expected: str
) -> None:
    path = str(config_file(f"quick/mask_rcnn_r18_fpn_{recipe}"))
    where = f"train.output_dir={folder}"
    args = argparse.Namespace(resume=True, eval_only=False)
    with pytest.raises(ConfigError, match=expected) as caught:
        check_start(read_config(load_config(path, [where, *overrides])), args)
    assert "add train.resume.other_model=True" in str(caught.value)
    allowed = load_config(path, [where, *overrides, "train.resume.other_model=true"])
    check_start(read_config(allowed), args)


def test_a_run_that_is_past_max_iter_is_not_resumed(folder: Path) -> None:
    where = f"train.output_dir={folder}"
    check(where, "train.max_iter=10", resume=True)
    with pytest.raises(ConfigError, match=r"10 iterations behind it, and train\.max_iter is 9"):
        check(where, "train.max_iter=9", resume=True)


def test_a_damaged_file_is_the_checkpointers_to_tell(tmp_path: Path) -> None:
    (tmp_path / "model_0000009.pth").write_bytes(b"PK nothing")
    check(f"train.output_dir={tmp_path}", resume=True)
