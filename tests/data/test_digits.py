"""The embedded digits dataset: its content, its building, its registration."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import portalocker
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

pytest.importorskip("detectron2", reason="the package registers the dataset in detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from wsbcn_d2.data import build_digits, digit_scenes, digits, register_digits

REPO = Path(__file__).resolve().parents[2]
SMALL = {"train": 6, "val": 3}
# For processes that only build: importing detectron2, as the package does, takes seconds.
WITHOUT_DETECTRON2 = (
    "import sys, types; package = types.ModuleType('wsbcn_d2.data');"
    f"package.__path__ = [{str(Path(digits.__file__).parent)!r}];"
    "sys.modules['wsbcn_d2.data'] = package; from wsbcn_d2.data import digits"
)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_digits(tmp_path_factory.mktemp("cache"), progress=False)


@pytest.fixture(scope="session")
def coco(built: Path) -> dict[str, dict[str, Any]]:
    return {s: json.loads(digits.annotation_file(built, s).read_text()) for s in digits.SPLITS}


@pytest.fixture
def registered(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The two names, registered where the dataset is already built."""
    monkeypatch.setenv(digits.CACHE_VARIABLE, str(built.parent))
    register_digits()
    yield built
    monkeypatch.undo()
    register_digits()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of a few images, for the tests that need the act and not the result."""
    monkeypatch.setattr(digits, "SPLITS", SMALL)


def _temporary_folders(root: Path) -> list[Path]:
    return list(root.glob("*.tmp-*"))


def _image_names(folder: Path, split: str) -> list[str]:
    return sorted(path.name for path in (folder / split).iterdir())


def _spawn(code: str, **env: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- content ---------------------------------------------------------------------------------


def test_bytes_are_the_published_ones(built: Path) -> None:
    assert digits.folder_digest(built) == digits.DIGITS_SHA256


@pytest.mark.parametrize(("split", "count"), [("train", 400), ("val", 100)])
def test_counts_and_categories(
    built: Path, coco: dict[str, dict[str, Any]], split: str, count: int
) -> None:
    content = coco[split]
    assert [(c["id"], c["name"]) for c in content["categories"]] == [
        (digit + 1, str(digit)) for digit in range(10)
    ]
    assert _image_names(built, split) == [image["file_name"] for image in content["images"]]
    assert len(content["images"]) == count
    annotations = content["annotations"]
    assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
    per_class = Counter(a["category_id"] for a in annotations)
    assert set(per_class) == set(range(1, 11))
    assert max(per_class.values()) - min(per_class.values()) <= 1
    per_image = Counter(a["image_id"] for a in annotations)
    assert set(per_image) == {image["id"] for image in content["images"]}
    assert min(per_image.values()) >= 2 and max(per_image.values()) == 6


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_are_rgb_files_of_the_stated_size(
    built: Path, coco: dict[str, dict[str, Any]], split: str
) -> None:
    sizes = set()
    for image in coco[split]["images"]:
        with Image.open(built / split / image["file_name"]) as file:
            assert (file.format, file.mode) == ("PNG", "RGB")
            assert file.size == (image["width"], image["height"])
        sizes |= {image["width"], image["height"]}
    assert min(sizes) >= 144 and max(sizes) <= 176 and len(sizes) > 20


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_areas_are_those_of_the_masks_which_do_not_overlap(
    coco: dict[str, dict[str, Any]], split: str
) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco[split]["images"]}
    covered = {image_id: np.zeros(size, dtype=int) for image_id, size in sizes.items()}
    for annotation in coco[split]["annotations"]:
        mask = mask_api.decode(annotation["segmentation"])
        assert mask.shape == sizes[annotation["image_id"]]
        ys, xs = np.nonzero(mask)
        width, height = xs.max() - xs.min() + 1, ys.max() - ys.min() + 1
        assert annotation["bbox"] == [xs.min(), ys.min(), width, height]
        assert annotation["area"] == mask.sum() >= 20
        assert annotation["iscrowd"] == 0
        covered[annotation["image_id"]] += mask
    assert max(int(count.max()) for count in covered.values()) == 1


def test_training_and_validation_share_no_source(coco: dict[str, dict[str, Any]]) -> None:
    _, labels, _ = digits._load_sources()
    used = {}
    for split, content in coco.items():
        used[split] = {a["source_digit"] for a in content["annotations"]}
        for a in content["annotations"]:
            assert a["category_id"] == labels[a["source_digit"]] + 1
    assert used["train"] and used["val"]
    assert used["train"].isdisjoint(used["val"])
    assert digits._COLUMNS["train"].stop <= digits._COLUMNS["val"].start


def test_digits_overlap_but_none_is_hidden_for_more_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full_areas: list[int] = []
    paint = digit_scenes._Canvas.paint

    def spy(self: Any, rng: Any, opacity: Any, mask: np.ndarray, top: int, left: int) -> None:
        full_areas.append(int(mask.sum()))
        paint(self, rng, opacity, mask, top, left)

    monkeypatch.setattr(digit_scenes._Canvas, "paint", spy)
    images, labels, photos = digits._load_sources()
    scenes = digit_scenes.generate_scenes(0, 40, images, labels, range(1797), photos)
    visible = np.array([int(mask.sum()) for scene in scenes for mask in scene.masks])
    share = visible / np.array(full_areas)
    assert share.min() >= 1 - digit_scenes.MAX_HIDDEN
    assert 0.1 < (share < 1).mean() < 0.6
    assert (share < 0.7).any()


def test_scenes_depend_on_the_seed_only() -> None:
    images, labels, photos = digits._load_sources()

    def scenes(seed: int) -> list[digit_scenes.DigitScene]:
        return list(digit_scenes.generate_scenes(seed, 2, images, labels, range(1797), photos))

    np.random.seed(1)
    first = scenes(3)
    np.random.seed(2)
    for one, same in zip(first, scenes(3), strict=True):
        assert np.array_equal(one.image, same.image) and np.array_equal(one.masks, same.masks)
    assert not np.array_equal(first[0].masks, scenes(4)[0].masks)


@pytest.mark.parametrize("height", [16, 33, 56])
@pytest.mark.parametrize("tilt", [-11, 0, 11])
def test_mask_is_where_the_ink_is(height: int, tilt: int) -> None:
    images, _, _ = digits._load_sources()
    opacity, mask = digit_scenes.render_ink(images[0], height, tilt)
    assert opacity.shape == mask.shape
    assert opacity.max() <= 256
    # Half coverage of the lightest ink: 0.5 * 0.65 * 256, rounded.
    assert opacity[mask].min() >= 83 and opacity[~mask].max() <= 83
    rows = int(mask.any(axis=1).sum())
    assert 0.7 * height <= rows <= 1.2 * height


def test_untilted_ink_at_source_resolution_is_the_source() -> None:
    images, _, _ = digits._load_sources()
    _, mask = digit_scenes.render_ink(images[0], 8, 0)
    ink = images[0] >= digit_scenes.INK_LEVEL
    ys, xs = np.nonzero(ink)
    my, mx = np.nonzero(mask)
    cropped = ink[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    assert np.array_equal(mask[my.min() : my.max() + 1, mx.min() : mx.max() + 1], cropped)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (176, 176)])
def test_png_decodes_to_the_same_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    image = np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)
    path = tmp_path / "image.png"
    path.write_bytes(digits._encode_png(image))
    with Image.open(path) as file:
        assert np.array_equal(np.asarray(file), image)


# --- building --------------------------------------------------------------------------------


def test_second_call_changes_nothing_and_needs_no_source(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "_load_sources", lambda: pytest.fail("was built again"))
    before = {path: path.stat().st_mtime_ns for path in built.parent.rglob("*")}
    assert build_digits(built.parent) == built
    assert {path: path.stat().st_mtime_ns for path in built.parent.rglob("*")} == before


@pytest.mark.usefixtures("small")
def test_cache_variable_moves_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(digits.CACHE_VARIABLE, str(tmp_path / "not" / "yet"))
    folder = build_digits(progress=False)
    assert folder == tmp_path / "not" / "yet" / "digits-v1"
    assert len(_image_names(folder, "train")) == SMALL["train"]
    monkeypatch.setenv(digits.CACHE_VARIABLE, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert digits.cache_root() == tmp_path / ".cache" / "wsbcn_d2"


@pytest.mark.usefixtures("small")
def test_progress_bar_can_be_switched_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_digits(tmp_path / "a", progress=False)
    assert "image" not in capsys.readouterr().err
    build_digits(tmp_path / "b")
    assert "Building digits: 100%" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_other_bytes_than_published_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = build_digits(tmp_path, progress=False)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert digits.DIGITS_SHA256 in record.getMessage()
    assert digits.folder_digest(folder) in record.getMessage()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    append_scene = digits._append_scene

    def fail_in_validation(*args: Any) -> None:
        if list(tmp_path.glob("*.tmp-*/val/*.png")):
            raise interruption
        append_scene(*args)

    with monkeypatch.context() as patch, pytest.raises(interruption):
        patch.setattr(digits, "_append_scene", fail_in_validation)
        build_digits(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["digits-v1.lock"]
    folder = build_digits(tmp_path, progress=False)
    assert len(_image_names(folder, "val")) == SMALL["val"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no SIGKILL")
def test_killed_build_is_not_taken_for_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = _spawn(f"{WITHOUT_DETECTRON2}; digits.build_digits({str(tmp_path)!r})")
    _wait_until(lambda: len(list(tmp_path.glob("*.tmp-*/train/*.png"))) > 20, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (leftover,) = _temporary_folders(tmp_path)
    assert not (tmp_path / "digits-v1").exists()

    monkeypatch.setattr(digits, "SPLITS", SMALL)
    hours_ago = time.time() - 2 * digits._STALE_AFTER_S
    os.utime(leftover, (hours_ago, hours_ago))
    recent = tmp_path / "digits-v1.tmp-recent"
    recent.mkdir()  # of a build that still runs, perhaps
    folder = build_digits(tmp_path, progress=False)
    assert len(_image_names(folder, "train")) == SMALL["train"]
    assert _temporary_folders(tmp_path) == [recent]


def test_of_two_processes_at_once_one_builds_and_both_get_all(tmp_path: Path) -> None:
    code = f"""
{WITHOUT_DETECTRON2}
import os, pathlib, time
root = pathlib.Path({str(tmp_path)!r})
digits.SPLITS = {{"train": 40, "val": 10}}
write = digits._write_dataset
def spy(*args, **kwargs):
    print("builds", flush=True)
    time.sleep(0.5)  # the other one surely arrives meanwhile
    write(*args, **kwargs)
digits._write_dataset = spy
digits._load_sources()  # warm, so that the two start together
(root / f"ready-{{os.getpid()}}").touch()
while len(list(root.glob("ready-*"))) < 2:
    time.sleep(0.005)
folder = digits.build_digits(root / "cache", progress=False)
print(len(list(folder.glob("train/*.png"))), len(list(folder.glob("val/*.png"))))
"""
    processes = [_spawn(code) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted(out for out, _ in outputs) == ["40 10\n", "builds\n40 10\n"]
    assert not _temporary_folders(tmp_path / "cache")


@pytest.mark.usefixtures("small")
def test_without_locks_the_first_to_finish_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise portalocker.exceptions.LockException("no locks available")

    monkeypatch.setattr(portalocker.Lock, "acquire", refuse)
    write = digits._write_dataset
    inodes: list[int | None] = []

    def overtaken(folder: Path, *args: Any, **kwargs: Any) -> None:
        write(folder, *args, **kwargs)
        if not inodes:  # the second process starts and finishes before the first one does
            inodes.append(None)
            inodes[0] = build_digits(tmp_path, progress=False).stat().st_ino

    monkeypatch.setattr(digits, "_write_dataset", overtaken)
    assert build_digits(tmp_path, progress=False).stat().st_ino == inodes[0]
    assert not _temporary_folders(tmp_path)
    assert "no locks available" in caplog.text


def test_damaged_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "digits-v1" / "train").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"digits-v1 exists but lacks .* delete it"):
        build_digits(tmp_path)


def test_unusable_cache_folder_is_named_with_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    root = tmp_path / "file" / "cache"
    with pytest.raises(OSError, match=f"{re.escape(str(root))}.*WSBCN_D2_CACHE"):
        build_digits(root)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_read_only_cache_folder_is_named_with_the_variable(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match=f"{re.escape(str(tmp_path))}.*WSBCN_D2_CACHE"):
            build_digits(tmp_path)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.usefixtures("small")
def test_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digits, "_encode_png", full)
    with pytest.raises(OSError, match=r"No space left on device.*WSBCN_D2_CACHE"):
        build_digits(tmp_path, progress=False)
    assert not _temporary_folders(tmp_path)


# --- registration ----------------------------------------------------------------------------


def test_import_builds_nothing(tmp_path: Path) -> None:
    code = (
        "import wsbcn_d2.data; from detectron2.data import DatasetCatalog as c;"
        "assert {'digits_train', 'digits_val'} <= set(c.list())"
    )
    process = _spawn(code, WSBCN_D2_CACHE=str(tmp_path / "cache"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_catalog_loads_the_dataset(
    registered: Path, coco: dict[str, dict[str, Any]], split: str
) -> None:
    records = DatasetCatalog.get(f"digits_{split}")
    metadata = MetadataCatalog.get(f"digits_{split}")
    assert len(records) == len(coco[split]["images"])
    assert sum(len(r["annotations"]) for r in records) == len(coco[split]["annotations"])
    assert all(Path(r["file_name"]).is_file() for r in records)
    assert metadata.json_file == str(digits.annotation_file(registered, split))
    assert metadata.image_root == str(registered / split)
    assert metadata.evaluator_type == "coco"
    assert metadata.thing_classes == [str(digit) for digit in range(10)]
    assert len({tuple(color) for color in metadata.thing_colors}) == 10
    assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(10)}


@pytest.mark.usefixtures("small")
def test_loading_builds_what_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(register_digits)
        patch = stack.enter_context(monkeypatch.context())
        patch.setenv(digits.CACHE_VARIABLE, str(tmp_path))
        register_digits()
        assert not any(tmp_path.iterdir())
        assert len(DatasetCatalog.get("digits_val")) == SMALL["val"]
    assert not MetadataCatalog.get("digits_val").json_file.startswith(str(tmp_path))


def test_registering_again_and_reloading_change_nothing(registered: Path) -> None:
    metadata = MetadataCatalog.get("digits_train")
    register_digits()
    importlib.reload(importlib.import_module("wsbcn_d2.data.builtin")).register_digits()
    assert MetadataCatalog.get("digits_train") is metadata


def test_name_of_another_project_is_not_taken() -> None:
    DatasetCatalog.remove("digits_train")
    MetadataCatalog.remove("digits_train")
    try:
        DatasetCatalog.register("digits_train", list)
        with pytest.raises(AssertionError, match="digits_train"):
            register_digits()
        assert DatasetCatalog.get("digits_train") == []
    finally:
        DatasetCatalog.remove("digits_train")
        MetadataCatalog.pop("digits_train", None)
        register_digits()


def test_ground_truth_as_prediction_has_full_ap(registered: Path, tmp_path: Path) -> None:
    # Constructed before the dataset is loaded: the annotation file and the class map must do.
    evaluator = COCOEvaluator(
        "digits_val", ("bbox", "segm"), False, str(tmp_path), use_fast_impl=False
    )
    evaluator.reset()
    for record in DatasetCatalog.get("digits_val"):
        annotations = record["annotations"]
        boxes = [
            BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in annotations
        ]
        masks = np.stack([mask_api.decode(a["segmentation"]) for a in annotations])
        instances = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.tensor(boxes)),
            scores=torch.ones(len(boxes)),
            pred_classes=torch.tensor([a["category_id"] for a in annotations]),
            pred_masks=torch.from_numpy(masks).bool(),
        )
        evaluator.process([{"image_id": record["image_id"]}], [{"instances": instances}])
    results = evaluator.evaluate()
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100, abs=1e-3)
        for digit in range(10):
            assert results[task][f"AP-{digit}"] == pytest.approx(100, abs=1e-3)
