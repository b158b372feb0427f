"""Images that cannot be used in evaluation."""

import pytest
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm

from tests.engine.fault_runs import Run, wait_until
from wsbcn_d2.data.evaluation_loader import name_bad_images
from wsbcn_d2.data.train_loader import BadDataError

RECORDS = [{"file_name": f"{i}.png", "image_id": i} for i in range(6)]


def refuse_5(record):
    if record["image_id"] == 5:
        raise OSError("image file is truncated")
    return record


def loader(num_workers):
    loader = build_detection_test_loader(RECORDS, mapper=refuse_5, num_workers=num_workers)
    name_bad_images(loader)
    return loader


MESSAGE = "image 5.png (image_id 5, in evaluation) cannot be used: OSError: image file is truncated"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_is_named(num_workers):
    seen = []
    with pytest.raises(BadDataError) as error:
        seen.extend(batch[0]["image_id"] for batch in loader(num_workers))
    assert str(error.value).startswith(MESSAGE) and "Traceback" not in str(error.value)
    assert seen == [0, 1, 2, 3, 4]


def evaluate():
    for _ in loader(1):
        pass
    comm.synchronize()


def test_on_one_rank_of_two_it_ends_the_command_with_that_message(tmp_path):
    run = Run(tmp_path, evaluate, (), num_gpus_per_machine=2)
    try:
        assert run.end() == 1
        assert run.output.startswith(f"command: error: {MESSAGE}")
        assert "Traceback" not in run.output
        assert wait_until(lambda: not run.left(), 10)
    finally:
        run.stop()
