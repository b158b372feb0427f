"""Bad images and dead data loader workers, in a training."""

import json
import os
import re
import signal

import pytest

from tests.engine.tiny_training import prepare, training
from wsbcn_d2.data.train_loader import BadDataError, WorkerError
from wsbcn_d2.engine import Trainer

BATCH = ["dataloader.train.total_batch_size=4", "train.max_iter=3", "train.log_period=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    prepare(folder)
    (folder / "coco" / "train2017" / "000000000004.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_ends_the_training_by_name(folder, workers):
    with pytest.raises(BadDataError) as error:
        training(folder, f"error{workers}", *BATCH, f"dataloader.train.num_workers={workers}")
    first, hint = str(error.value).splitlines()
    assert re.fullmatch(
        r"image \S*000000000004\.png \(image_id 4, .*\) cannot be used: UnidentifiedImage.*", first
    )
    assert "train.bad_data.action=skip" in hint
    assert "Traceback" not in str(error.value)
    assert error.value.__cause__ is None and error.value.__context__ is None


def test_a_bad_image_is_skipped_and_counted_on_request(folder):
    training(folder, "skip", *BATCH, "train.bad_data.action=skip")
    lines = (folder / "skip" / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["skipped_images"] for line in lines][-1] >= 1


def test_a_worker_that_dies_is_named(folder, monkeypatch):
    run_step = Trainer.run_step
    killed = []

    def killing(self):
        if self.iter == 1:
            worker = self.data_loader._iterator._workers[1]
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", killing)
    with pytest.raises(WorkerError) as error:
        training(
            folder, "worker", *BATCH, "train.bad_data.action=skip", "train.max_iter=50",
            "dataloader.train.num_workers=2",
        )  # fmt: skip
    message = str(error.value)
    assert "the data loader of rank 0 lost a process at iteration" in message
    assert f"worker 1 of 2 (pid {killed[0]}) was killed by SIGKILL" in message
