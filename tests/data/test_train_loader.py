"""Which images a step sees, how they are augmented, and what becomes of bad ones."""

import itertools
import os
import random
import signal
import subprocess

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from PIL import Image

from wsbcn_d2.data.train_loader import BadDataError, build_train_loader

DATASET = [{"image_id": i, "width": 2 + i % 3, "height": 3} for i in range(10)]


def augment(record):
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    return {**record, "drawn": drawn}


def batches(monkeypatch, steps, rank=0, world_size=1, **options):
    """The micro-batches of ``rank`` in ``steps`` steps."""
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    settings = {
        "dataset": list(DATASET), "mapper": augment, "total_batch_size": 8, "images_per_gpu": 1,
        "run_seed": 5, **options,
    }  # fmt: skip
    loader = build_train_loader(**settings)
    per_rank = settings["total_batch_size"] // settings["images_per_gpu"] // world_size
    found = list(itertools.islice(loader, steps * per_rank))
    return [found[i : i + per_rank] for i in range(0, len(found), per_rank)]


def steps_of_ranks(monkeypatch, steps, world_size, **options):
    """The step's micro-batches in their global order."""
    ranks = [batches(monkeypatch, steps, r, world_size, **options) for r in range(world_size)]
    count = world_size * len(ranks[0][0])
    return [[ranks[m % world_size][s][m // world_size] for m in range(count)] for s in range(steps)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_steps_are_the_same_on_any_number_of_processes(monkeypatch, world_size):
    alone = steps_of_ranks(monkeypatch, 4, 1)
    assert steps_of_ranks(monkeypatch, 4, world_size) == alone
    # Every image once in an epoch, and another order and other augmentations in the next.
    ids = [image["image_id"] for step in alone for (image,) in step]
    assert sorted(ids[:10]) == sorted(ids[10:20]) == list(range(10))
    assert ids[:10] != ids[10:20]
    drawn = {number for step in alone for (image,) in step for number in image["drawn"]}
    assert len(drawn) == 3 * 32


def test_the_order_is_detectron2s(monkeypatch):
    ids = [image["image_id"] for step in batches(monkeypatch, 4) for (image,) in step]
    assert ids == list(itertools.islice(TrainingSampler(10, seed=5), 32))
    factors = torch.tensor([1.0] * 9 + [2.5])
    repeat = {"sampler": RepeatFactorTrainingSampler(factors)}  # a seed of its own
    ids = [image["image_id"] for step in batches(monkeypatch, 4, **repeat) for (image,) in step]
    assert ids == list(itertools.islice(RepeatFactorTrainingSampler(factors, seed=5), 32))


def test_larger_micro_batches_hold_the_same_images_with_one_orientation(monkeypatch):
    alone = steps_of_ranks(monkeypatch, 3, 1)
    pairs = steps_of_ranks(monkeypatch, 3, 2, images_per_gpu=2)
    for single, paired in zip(alone, pairs, strict=True):
        images = list(itertools.chain(*paired))
        key = lambda image: image["drawn"]  # noqa: E731
        assert sorted(images, key=key) == sorted(itertools.chain(*single), key=key)
        wide = [{image["width"] > image["height"] for image in batch} for batch in paired]
        assert sum(len(orientations) > 1 for orientations in wide) <= 1
    free = steps_of_ranks(monkeypatch, 3, 2, images_per_gpu=2, aspect_ratio_grouping=False)
    assert [i for s in free for b in s for i in b] == [i for s in alone for b in s for i in b]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_starts_anywhere_with_any_number_of_workers(monkeypatch, num_workers):
    whole = batches(monkeypatch, 5)
    torch.manual_seed(11)  # what was drawn before does not matter
    state = torch.get_rng_state()
    later = batches(monkeypatch, 2, start=3 * 8, num_workers=num_workers)
    assert later == whole[3:]
    if num_workers == 0:
        random.seed(1)
        # A worker's base seed is drawn by torch itself when it starts to iterate.
        assert not torch.equal(torch.get_rng_state(), state)


def test_skipping_loads_no_image_and_is_fast(monkeypatch):
    class Untouchable(list):
        loads = 0

        def __getitem__(self, index):
            self.loads += 1
            return super().__getitem__(index)

    monkeypatch.setattr("wsbcn_d2.data.train_loader.DatasetFromList", lambda dicts, copy: dicts)
    dataset = Untouchable([{"image_id": 0, "width": 1, "height": 1}] * 100_000)
    start = 4_000_000
    (step,) = batches(monkeypatch, 1, dataset=dataset, start=start)
    assert dataset.loads == 8 and len(step) == 8


def test_a_dataset_smaller_than_the_batch(monkeypatch):
    (first, second) = batches(monkeypatch, 2, dataset=DATASET[:3])
    ids = [image["image_id"] for (image,) in first + second]
    assert all(sorted(ids[i : i + 3]) == [0, 1, 2] for i in range(0, 15, 3))
    assert len({image["drawn"] for (image,) in first + second}) == 16


def test_wrong_settings_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"total_batch_size \(8\).*images_per_gpu \(3\) × 1"):
        batches(monkeypatch, 1, images_per_gpu=3)
    with pytest.raises(ValueError, match=r"sampler \(SequentialSampler\).*exact_resume=False"):
        batches(monkeypatch, 1, sampler=torch.utils.data.SequentialSampler(DATASET))


def test_without_sizes_images_are_not_grouped(monkeypatch, caplog):
    dataset = [{"image_id": i} for i in range(4)]
    batches(monkeypatch, 1, dataset=dataset, images_per_gpu=2)
    assert "No aspect-ratio grouping" in caplog.text


def test_a_collate_function_gets_the_images(monkeypatch):
    (step,) = batches(monkeypatch, 1, images_per_gpu=8, collate_fn=len, prefetch_factor=None)
    assert step == [8]


@pytest.fixture
def images(tmp_path):
    """Twelve images, one of them missing and one cut off."""
    dataset = []
    for i in range(12):
        path = tmp_path / f"{i}.png"
        pixels = np.random.default_rng(i).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        dataset.append({"file_name": str(path), "image_id": 100 + i, "width": 30, "height": 20})
    (tmp_path / "3.png").unlink()
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:200])
    return dataset


MAPPER = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_is_named(monkeypatch, images, num_workers):
    order = list(itertools.islice(TrainingSampler(12, seed=5), 12))
    position = min(order.index(3), order.index(7))
    index = order[position]
    with pytest.raises(BadDataError) as error:
        batches(monkeypatch, 2, dataset=images, mapper=MAPPER, num_workers=num_workers)
    message = str(error.value)
    assert (
        f"{index}.png (image_id {100 + index}, dataset index {index}, position {position}"
        in message
    )
    assert ("FileNotFoundError" if index == 3 else "OSError") in message
    assert "train.bad_data.action=skip" in message


def test_bad_images_are_replaced_by_the_same_ones_after_a_resume(monkeypatch, images, caplog):
    options = {"dataset": images, "mapper": MAPPER, "skip_bad": True}
    ids = lambda steps: [[i["image_id"] for (i,) in s] for s in steps]  # noqa: E731
    whole = ids(batches(monkeypatch, 4, **options))
    order = list(itertools.islice(TrainingSampler(12, seed=5), 32))
    good = [i for i, index in enumerate(order) if index not in (3, 7)]
    flat = list(itertools.chain(*whole))
    assert [flat[i] for i in good] == [100 + order[i] for i in good]
    assert not {103, 107} & set(flat)
    assert caplog.text.count("Skipped (number") >= order.count(3) + order.count(7)
    assert "3.png (image_id 103" in caplog.text and "7.png (image_id 107" in caplog.text
    assert ids(batches(monkeypatch, 2, start=16, num_workers=1, **options)) == whole[2:]


def test_too_many_bad_images_are_an_error(monkeypatch, images):
    options = {"dataset": images, "mapper": MAPPER, "skip_bad": True}
    with pytest.raises(BadDataError, match=r"had to skip 1[1-9] of its \d+ images.*0\.01"):
        batches(monkeypatch, 40, **options)
    batches(monkeypatch, 15, max_bad_share=0.5, **options)
    for record in images:
        record["file_name"] = "nowhere.png"
    with pytest.raises(BadDataError, match=r"(?s)10 images in a row.*position 0.*nowhere\.png"):
        batches(monkeypatch, 1, **options)


def test_what_the_mapper_refuses_is_replaced_silently(monkeypatch, caplog):
    even = lambda record: None if record["image_id"] % 2 else record  # noqa: E731
    found = batches(monkeypatch, 4, mapper=even)
    assert all(image["image_id"] % 2 == 0 for step in found for (image,) in step)
    assert "Skipped" not in caplog.text
    with pytest.raises(BadDataError, match="mapper returned None"):
        batches(monkeypatch, 1, mapper=lambda record: None)


def test_a_killed_worker_is_named(monkeypatch):
    monkeypatch.setattr(comm, "get_rank", lambda: 0)
    loader = build_train_loader(
        list(DATASET), mapper=augment, total_batch_size=1, images_per_gpu=1, run_seed=0,
        num_workers=2,
    )  # fmt: skip
    iterator = iter(loader)
    next(iterator)
    assert loader.dead_workers() == []
    victim = loader._iterator._workers[1]
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        os.kill(victim.pid, signal.SIGKILL)
        for _ in range(100):
            next(iterator)
    assert loader.dead_workers() == [f"worker 1 of 2 (pid {victim.pid}) was killed by SIGKILL"]


def test_workers_survive_a_scheduler_that_signals_all_processes(monkeypatch):
    monkeypatch.setattr(comm, "get_rank", lambda: 0)
    loader = build_train_loader(
        list(DATASET), mapper=augment, total_batch_size=1, images_per_gpu=1, run_seed=0,
        num_workers=1,
    )  # fmt: skip
    iterator = iter(loader)
    next(iterator)
    (worker,) = loader._iterator._workers
    # From another process, as the scheduler's does.
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    for _ in range(20):
        next(iterator)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)  # from its rank, as at the rank's end
    worker.join(30)
    assert worker.exitcode == 0
