"""Image files: whether they are there, what a sample of them says, and how 16 bits are read."""

from __future__ import annotations

import os

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from PIL import Image

from wsbcn_d2.data.check_files import check_files
from wsbcn_d2.data.findings import Needs
from wsbcn_d2.data.read_image import register_16_bit_images, to_8_bit

SKIP = Needs(skip_bad=True)
NOISE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path):
    entries = []
    for i in range(40):
        name = f"{'even' if i % 2 == 0 else 'odd'}/{i}.jpg"
        os.makedirs((tmp_path / name).parent, exist_ok=True)
        Image.fromarray(NOISE).save(tmp_path / name)
        entries.append({"id": i, "file_name": name, "width": 64, "height": 48})
    return entries


def found(images, folder, needs=None):
    return [(f.severity, f.message) for f in check_files(images, str(folder), needs or Needs())]


def test_nothing_is_found_where_all_is_well(images, tmp_path):
    assert found(images, tmp_path) == []
    turned = Image.fromarray(NOISE.swapaxes(0, 1))
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees when it is read
    turned.save(tmp_path / "even" / "0.jpg", exif=exif)
    assert found(images, tmp_path) == []


def test_missing_files_are_counted_and_named(images, tmp_path):
    for i in (3, 5):
        os.remove(tmp_path / images[i]["file_name"])
    message = "2 of 40 image files are not there (image id 3, 5; the first: "
    for needs, severity in ((None, "error"), (SKIP, "warning")):
        [(level, text)] = found(images, tmp_path, needs)
        assert level == severity and text.startswith(message) and text.endswith("odd/3.jpg)")


def test_where_all_are_missing_nothing_can_be_skipped(images, tmp_path):
    os.rename(tmp_path / "even", tmp_path / "elsewhere")
    assert found(images, tmp_path, SKIP)[0][1].startswith("20 of 40")
    [(severity, text)] = found(images[::2], tmp_path, SKIP)
    assert severity == "error" and text.startswith("20 of 20 image files are not there")
    [(severity, text)] = found(images, tmp_path / "nowhere", SKIP)
    assert severity == "error" and "no folder" in text and "nowhere" in text


def test_files_are_listed_by_folder_and_few_are_opened(images, tmp_path, monkeypatch):
    listed, opened = [], []
    listdir, image_open = os.listdir, Image.open
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or image_open(file))
    assert found(images, tmp_path) == []
    assert len(listed) == 2 and len(opened) == 16


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "image file is truncated"),
        (lambda path: path.write_bytes(b""), "cannot identify image file"),
        (lambda path: Image.new("RGB", (48, 64)).save(path), "it is 48x64 (width x height), and"),
    ],
)
def test_an_image_that_cannot_be_used(images, tmp_path, spoil, message):
    spoil(tmp_path / images[0]["file_name"])
    for needs, severity in ((None, "error"), (SKIP, "warning")):
        [(level, text)] = found(images, tmp_path, needs)
        assert level == severity and message in text
        assert text.startswith("1 of 16 sampled images cannot be used; the first: ")
        assert "even/0.jpg (image id 0): " in text


def deep_image(path, values):
    Image.fromarray(values).save(path)
    return str(path)


def test_16_bits_are_told_with_the_rule(images, tmp_path):
    for i, top in ((0, 60000), (2, 4095)):
        images[i]["file_name"] = f"{i}.png"
        deep_image(tmp_path / f"{i}.png", np.full((48, 64), top, np.uint16))
        [(severity, text)] = found(images, tmp_path)
        assert severity == "warning" and "scaled to 8 bits by 255/65535" in text
        assert text.startswith(f"{1 + i // 2} of 16 sampled images have 16 bits (image id 0")
    [(_, text)] = found([images[2]], tmp_path)
    assert "largest value is 4095, so they will be dark" in text


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
@pytest.mark.parametrize("format", ["RGB", "BGR", "L"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, name, format):
    values = np.random.default_rng(0).integers(0, 2**16, (30, 50), dtype=np.uint16)
    values[0, :3] = 0, 65535, 128  # 128 is the last that is rounded down to 0
    image = read_image(deep_image(tmp_path / name, values), format)
    expected = np.floor(values.astype(np.float64) * 255 / 65535 + 0.5)
    assert image.dtype == np.uint8 and image.shape == (30, 50, 1 if format == "L" else 3)
    assert np.array_equal(image, np.broadcast_to(expected[..., None], image.shape))
    mapper = DatasetMapper(is_train=False, augmentations=[], image_format=format)
    mapped = mapper({"file_name": str(tmp_path / name)})["image"]
    assert np.array_equal(mapped.permute(1, 2, 0), expected[..., None].repeat(image.shape[2], 2))


def test_more_than_16_bits_are_clipped():
    image = Image.fromarray(np.array([[-1, 0, 65535, 70000]], np.int32))
    assert np.asarray(to_8_bit(image)).tolist() == [[0, 0, 255, 255]]


def test_what_is_no_16_bit_image_is_read_as_before(tmp_path):
    register_16_bit_images()  # again changes nothing
    Image.fromarray(NOISE).save(tmp_path / "rgb.png")
    assert np.array_equal(read_image(str(tmp_path / "rgb.png"), "RGB"), NOISE)
    assert np.array_equal(read_image(str(tmp_path / "rgb.png"), "BGR"), NOISE[:, :, ::-1])
    Image.fromarray(NOISE[:, :, 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(str(tmp_path / "grey.png"), "L"), NOISE[:, :, :1])
    # Class numbers of a semantic map, which detectron2 reads as "L".
    labels = np.arange(64 * 4, dtype=np.uint16).reshape(16, 16)
    path = deep_image(tmp_path / "labels.png", labels)
    assert np.array_equal(read_image(path, "L").squeeze(2), labels)
    assert np.array_equal(read_image(path), labels)  # as the file has it, without a format
