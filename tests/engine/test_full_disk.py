"""Logs on a full disk, and what the error says."""

import errno
import json
import logging
import os

import pytest
import torch
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter

from wsbcn_d2.engine.full_disk import (
    PatientWriter,
    explaining_full_disk,
    keep_logging,
    patient_writers,
)


@pytest.fixture
def messages(monkeypatch):
    found = []
    logger = logging.getLogger("wsbcn_d2.engine.full_disk")
    for level in ("error", "warning"):
        monkeypatch.setattr(logger, level, lambda m, *args: found.append(m % args))
    return found


def write(writer, iterations):
    with EventStorage() as storage:
        for iteration in iterations:
            storage.iter = iteration
            storage.put_scalar("loss", 0.5)
            writer.write()


def test_metrics_warn_once_go_on_and_come_back_when_there_is_room(tmp_path, messages):
    path = tmp_path / "metrics.json"
    inner = JSONWriter(str(path))
    writer = PatientWriter(inner, str(path))
    write(writer, range(2))
    # The same descriptor on a device that is always full, and back.
    descriptor = inner._file_handle.fileno()
    disk = os.dup(descriptor)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    write(writer, range(2, 5))
    (message,) = messages
    assert f"cannot write {path}: No space left on device" in message
    assert f"MiB free in {tmp_path}" in message and "training goes on" in message
    os.dup2(disk, descriptor)
    write(writer, range(5, 7))
    assert len(messages) == 2 and f"{path} can be written again" in messages[1]
    writer.close()
    iterations = [json.loads(line)["iteration"] for line in path.read_text().splitlines()]
    assert iterations == list(range(7))  # what waited in the buffer included
    os.close(disk)
    os.close(full)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_on_a_full_disk_neither_ends_the_run_nor_blocks_it(
    tmp_path, messages, monkeypatch
):
    inner = TensorboardXWriter(str(tmp_path))
    writer = PatientWriter(inner, str(tmp_path / "events.out.tfevents.*"))
    write(writer, range(1))
    asynchronous = inner._writer._get_file_writer().event_writer._async_writer

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(asynchronous._writer, "write", fail)
    write(writer, range(1, 2))
    asynchronous._worker.join(10)
    # More than its queue holds.
    write(writer, range(2, 40))
    writer.close()
    (message,) = messages
    assert "events.out.tfevents.*: No space left" in message


def test_both_files_of_a_run_are_written_so_and_the_terminal_is_not(tmp_path):
    names = [type(writer).__name__ for writer in patient_writers(str(tmp_path), 10)]
    assert names == ["CommonMetricPrinter", "PatientWriter", "PatientWriter"]
    assert (tmp_path / "metrics.json").exists()


def test_other_errors_of_a_writer_are_not_hidden():
    class Broken(EventWriter):
        def write(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        PatientWriter(Broken(), "a").write()


def test_a_log_file_that_is_full_is_one_message_and_no_traceback(tmp_path, capsys):
    logger = logging.getLogger("tests.full_disk")
    logger.propagate = False
    with open(tmp_path / "log.txt", "w") as stream:
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        try:
            keep_logging(str(tmp_path))
            full = os.open("/dev/full", os.O_WRONLY)
            disk = os.dup(stream.fileno())
            os.dup2(full, stream.fileno())
            for i in range(3):
                logger.warning("line %d", i)
            os.dup2(disk, stream.fileno())
            logger.warning("line 3")
            logger.warning("no %d", "number")
        finally:
            logger.removeHandler(handler)
            os.close(full)
            os.close(disk)
    error = capsys.readouterr().err
    assert error.count("No space left on device") == 1
    assert f"ERROR: cannot write {tmp_path}/log.txt" in error
    # A wrong call is still shown as one.
    assert "TypeError: %d format" in error
    assert "line 3" in (tmp_path / "log.txt").read_text()


def test_an_error_without_a_path_gets_one_and_the_free_space(tmp_path):
    with pytest.raises(OSError, match=rf"cannot write {tmp_path}/…: .*\n.*MiB free") as error:  # noqa: SIM117
        with explaining_full_disk(str(tmp_path)), open("/dev/full", "w") as file:
            file.write("detections")
            file.flush()
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize("error", [FileNotFoundError(2, "none"), RuntimeError("else")])
def test_other_errors_are_left_alone(tmp_path, error):
    with pytest.raises(type(error)) as raised, explaining_full_disk(str(tmp_path)):
        raise error
    assert raised.value is error


def test_what_torch_makes_of_a_full_disk_is_explained_too(tmp_path):
    with pytest.raises(OSError, match="MiB free"), explaining_full_disk(str(tmp_path)):
        torch.save(torch.zeros(100_000), open("/dev/full", "wb"))  # noqa: SIM115
