"""tools/predict.py: its results are the model's, in tiles too, and bad input costs only itself."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from tests.deploy.detectors import load, make_images, write_detector
from tests.test_setup import load_tool
from wsbcn_d2.deploy.predict import draw, predict, tile_corners


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    config, weights = write_detector(tmp_path, "WS+GN")
    (tmp_path / "images").mkdir()
    for i, image in enumerate(make_images()):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    words = ["--config-file", str(config), "--weights", str(weights), "--threshold", "0"]
    return [*words, "--output", str(tmp_path / "out")]


def run(arguments: list[str], *paths: Path, fails: str = "", **kwargs) -> None:
    tool = load_tool("predict")
    words = [*arguments, *map(str, paths)]
    if fails:
        with pytest.raises(SystemExit, match=fails):
            tool.main(words)
    else:
        tool.main(words)


def test_results_are_the_models(arguments, tmp_path):
    run(arguments, tmp_path / "images")
    coco = COCO(tmp_path / "out" / "images.json")
    results = coco.loadRes(str(tmp_path / "out" / "coco_instances_results.json"))
    detector = load(tmp_path, "WS+GN")
    for number, image in enumerate(make_images(), start=1):
        expected = detector(image)
        found = results.loadAnns(results.getAnnIds(number))
        assert len(found) == len(expected) > 0
        for i, thing in enumerate(sorted(found, key=lambda thing: -thing["score"])):
            x0, y0, x1, y1 = expected.pred_boxes.tensor[i].tolist()
            assert thing["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-4)
            assert thing["category_id"] == expected.pred_classes[i] + 1
            mask = mask_api.decode(thing["segmentation"]).astype(bool)
            assert np.array_equal(mask, expected.pred_masks[i].numpy())
        with Image.open(tmp_path / "out" / f"{number - 1}.jpg") as picture:
            assert picture.size == image.shape[1::-1]


def test_bad_input_costs_only_itself(arguments, tmp_path, capsys):
    folder = tmp_path / "images"
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not much of an image")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.fromarray(np.full((40, 50), 40000, np.uint16)).save(folder / "deep.png")
    (tmp_path / "0.png").write_bytes((folder / "0.png").read_bytes())
    run(arguments, folder, tmp_path / "0.png", tmp_path / "nowhere.jpg")
    listed = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    names = [Path(image["file_name"]).name for image in listed]
    assert names == ["0.png", "1.png", "deep.png", "pixel.png", "0.png"]
    assert (tmp_path / "out" / "0_.jpg").exists()
    faults = capsys.readouterr().err
    assert "broken.jpg cannot be read: UnidentifiedImageError" in faults
    assert "nowhere.jpg is not there" in faults and "notes.txt" not in faults
    run(arguments, folder / "broken.jpg", fails="there was nothing to look at")


def test_images_of_too_many_pixels_go_in_tiles(arguments, tmp_path, capsys, monkeypatch):
    image = tmp_path / "images" / "0.png"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    run(arguments, image, fails="there was nothing to look at")
    assert "0.png has too many pixels to be looked at as a whole" in capsys.readouterr().err
    run([*arguments, "--tile", "64"], image)
    assert (tmp_path / "out" / "0.jpg").exists()


def test_masks_are_drawn_where_they_are():
    image = np.full((300, 400, 3), 100, np.uint8)
    image[200:210, 300:310, 2] = 1
    image[:, :, 2][image[:, :, 2] != 1] = 0
    (thing,) = predict(Bright(), image)
    thing["bbox"] = [0, 0, 5, 5]  # far from it
    changed = (draw(image, [thing], [""])[100:, 100:] != image[100:, 100:]).any(2)
    expected = np.zeros((300, 400), bool)
    expected[200:210, 300:310] = True
    assert np.array_equal(changed, expected[100:, 100:])


def test_a_large_image_is_drawn_smaller(monkeypatch):
    image = np.zeros((900, 1300, 3), np.uint8)
    image[600:660, 900:960] = (0, 0, 1)
    things = predict(Bright(), image)
    monkeypatch.setattr("wsbcn_d2.deploy.predict._LARGEST_PICTURE", 500)
    drawn = draw(image, things, ["square"])
    # Every third pixel; the label is at the box's upper edge, and wider.
    assert drawn.shape == draw(image, [], []).shape == (300, 434, 3)
    rows, columns = drawn[195:].any((1, 2)), drawn[215:].any((0, 2))
    assert np.flatnonzero(rows).max() + 195 == pytest.approx(220, abs=1)
    assert np.flatnonzero(columns)[0] == pytest.approx(300, abs=1)


def test_a_full_disk_keeps_what_was_done(arguments, tmp_path, monkeypatch):
    tool = load_tool("predict")
    save, saved = tool._save_jpeg, []

    def fail(image, path):
        if saved:
            raise OSError(28, "No space left on device", str(path))
        saved.append(path)
        save(image, path)

    monkeypatch.setattr(tool, "_save_jpeg", fail)
    with pytest.raises(SystemExit, match=r"predict.py: error: cannot write .*1\.jpg: No space"):
        tool.main([*arguments, str(tmp_path / "images")])
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 1
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_results_come_before_pictures_on_a_full_disk(arguments, tmp_path, monkeypatch):
    tool = load_tool("predict")
    write, failures = tool._Results.write, [OSError(28, "No space left on device")]

    def fail_once(self, folder):
        if failures:
            raise failures.pop()
        write(self, folder)

    monkeypatch.setattr(tool._Results, "write", fail_once)
    tool.main([*arguments, str(tmp_path / "images")])
    assert [file.name for file in (tmp_path / "out").glob("*.jpg")] == ["0.jpg"]
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 2


def test_weights_of_other_classes_are_one_message(arguments, tmp_path):
    state = torch.load(tmp_path / "model_final.pth")
    state["model"]["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "model_final.pth")
    run(arguments, tmp_path / "images", fails="has them in another shape")


def test_a_video_that_ends_early_keeps_its_frames(arguments, tmp_path, capsys):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 96, 64
        for i in range(5):
            pixels = np.full((64, 96, 3), 40 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    run(arguments, path)
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 5
    (tmp_path / "noise.avi").write_bytes(b"RIFF and no more")
    run(arguments, tmp_path / "noise.avi", path)
    assert "noise.avi cannot be read on after 0 frames" in capsys.readouterr().err
    assert (tmp_path / "out" / "clip_000004.jpg").exists()


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(100, 40, 0.2), (101, 33, 0.5), (30, 40, 0)]
)
def test_tiles_cover_and_overlap(length, tile, overlap):
    corners = tile_corners(length, tile, overlap)
    assert corners[0] == 0 and max(corners[-1] + tile, length) == max(length, tile)
    for a, b in itertools.pairwise(corners):
        # Corners are whole pixels.
        assert a < b and a + tile - b >= int(tile * overlap) - 1


class Bright:
    """A detector whose objects are the bright squares of 10 pixels, known by their blue."""

    def __call__(self, image):
        height, width = image.shape[:2]
        result = Instances((height, width))
        masks = [image[..., 2] == blue for blue in np.unique(image[..., 2]) if blue]
        boxes = []
        for mask in masks:
            ys, xs = np.nonzero(mask)
            boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        result.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
        # Cut ones are less certain than whole ones.
        result.scores = torch.tensor([mask.sum() / 101 for mask in masks])
        result.pred_masks = torch.from_numpy(np.array(masks).reshape(-1, height, width))
        return result


def test_tiles_give_the_whole_images_objects():
    image = np.zeros((90, 130, 3), np.uint8)
    random = np.random.default_rng(0)
    places = [(x, y) for x in range(2, 116, 18) for y in range(3, 76, 17)]
    for number, (x, y) in enumerate(places, start=1):
        x, y = x + int(random.integers(5)), y + int(random.integers(5))
        image[y : y + 10, x : x + 10] = (255, 255, number)
    whole, tiled = predict(Bright(), image), predict(Bright(), image, tile=40, overlap=0.5)
    assert len(whole) == len(places)
    key = lambda thing: thing["bbox"]  # noqa: E731
    assert sorted(whole, key=key) == sorted(tiled, key=key)
    assert draw(image, tiled, ["square"]).shape == image.shape
