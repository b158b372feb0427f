"""Records of each source, and what is said of sources that cannot be used."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from projects.classification.classification import (
    ClassificationMapper,
    cifar,
    digits,
    image_folder,
    tar_shards,
)
from projects.classification.classification.data import DatasetError
from wsbcn_d2.data.digits import source_digits


def picture(seed, size=(9, 7)):
    pixels = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return pixels, content.getvalue()


def write_folder(root, classes=("cat", "dog"), images=2):
    pixels = []
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            array, content = picture(10 * label + i)
            (root / name / f"{i}.png").write_bytes(content)
            pixels.append((label, array))
    return pixels


def write_shard(path, labels, with_label=True):
    pixels = []
    with tarfile.open(path, "w") as shard:
        for i, label in enumerate(labels):
            array, content = picture(i)
            pixels.append((label, array))
            members = {"png": content, **({"cls": str(label).encode()} if with_label else {})}
            for extension, data in members.items():
                info = tarfile.TarInfo(f"n{label}/{i:04d}.{extension}")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
    return pixels


def assert_maps_to(records, expected):
    mapper = ClassificationMapper(v2.Identity())
    assert len(records) == len(expected)
    for record, (label, pixels) in zip(records, expected, strict=True):
        mapped = mapper(record)
        assert mapped["label"] == record["label"] == label
        assert torch.equal(mapped["image"], torch.from_numpy(pixels).permute(2, 0, 1))


def test_image_folder_and_shards_give_the_written_pixels_and_labels(tmp_path):
    expected = write_folder(tmp_path / "folder")
    (tmp_path / "folder/cat/notes.txt").write_text("no image")
    assert_maps_to(image_folder(str(tmp_path / "folder")), expected)
    first = write_shard(tmp_path / "0.tar", [1, 0])
    second = write_shard(tmp_path / "1.tar", [2, 2, 0])
    shards = [str(tmp_path / "0.tar"), str(tmp_path / "1.tar")]
    assert_maps_to(tar_shards(shards), first + second)


def test_digits_are_the_embedded_ones(tmp_path):
    records = digits("val", size=24)
    images, labels = source_digits("val")
    mapped = [ClassificationMapper(v2.Identity())(record)["image"] for record in records[:20]]
    assert torch.stack(mapped).shape == (20, 3, 24, 24)
    assert [record["label"] for record in records] == labels.tolist()
    # Every pixel of the source is a square of 3 x 3.
    small = torch.stack(mapped)[:, 0, ::3, ::3]
    assert torch.equal(small, torch.from_numpy(images[:20] * 15).to(torch.uint8))


def test_cifar_from_its_own_files(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.RandomState(0)
    rows = rng.randint(0, 256, (4, 3072)).astype(np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)]
    for name in [*names, "test_batch"]:
        content = {"data": rows, "labels": [3, 1, 4, 1]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(DatasetError, match=r"cifar-10-batches-py"):
        cifar(str(tmp_path), "test")  # other checksums than the published files
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    pixels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    expected = list(zip([3, 1, 4, 1], pixels, strict=True))
    assert_maps_to(cifar(str(tmp_path), "test"), expected)
    assert_maps_to(cifar(str(tmp_path), "train"), expected * 5)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"PNG") + 40])


def empty_class(tmp_path):
    write_folder(tmp_path / "set")
    (tmp_path / "set/eel").mkdir()
    return image_folder, str(tmp_path / "set"), "set/eel: a class without images"


def no_folder(tmp_path):
    return image_folder, str(tmp_path / "nowhere"), "no folder .*nowhere"


def cut_shard(tmp_path):
    write_shard(tmp_path / "7.tar", [0, 1])
    cut(tmp_path / "7.tar")
    return tar_shards, [str(tmp_path / "7.tar")], "7.tar cannot be read: unexpected end of data"


def no_tar(tmp_path):
    (tmp_path / "8.tar").write_text("<html>not found</html>")
    return tar_shards, [str(tmp_path / "8.tar")], "8.tar cannot be read"


def unlabelled_shard(tmp_path):
    write_shard(tmp_path / "9.tar", [0, 1], with_label=False)
    return tar_shards, [str(tmp_path / "9.tar")], r"9.tar has no label n0/0000.cls"


@pytest.mark.parametrize("case", [empty_class, no_folder, cut_shard, no_tar, unlabelled_shard])
def test_unusable_source_is_one_message_with_the_file(tmp_path, case):
    source, argument, message = case(tmp_path)
    with pytest.raises(DatasetError, match=message):
        source(argument)
