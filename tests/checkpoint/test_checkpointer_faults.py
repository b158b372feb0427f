"""Killed savers, damaged files and full disks: what a run resumes from afterwards."""

import errno
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import statistics
import subprocess
import time
from pickle import PicklingError

import pytest
import torch
from detectron2.engine.hooks import PeriodicCheckpointer
from torch import nn

from wsbcn_d2.checkpoint import CheckpointError, WSBCNCheckpointer

# 4 MB of weights, all equal to the iteration: a mix of two checkpoints would show.
SIZE = 1_000_000


def filled_model(value, size=SIZE):
    model = nn.Module()
    model.weight = nn.Parameter(torch.full((size,), float(value)))
    return model


def iteration_of(folder):
    """What a new process would resume from, after a look at the weights."""
    model = filled_model(-1.0, SIZE)
    rest = WSBCNCheckpointer(model, str(folder)).resume_or_load("", resume=True)
    assert torch.equal(model.weight, torch.full((SIZE,), float(rest["iteration"])))
    return rest["iteration"]


def save_for_ever(folder, first, pipe, kill_at=None):
    """Save iteration after iteration, telling of each. Runs in a forked process.

    ``kill_at``: die at this one of the system calls that make a save (each has a before and an
    after), counted from the second save on.
    """
    torch.set_num_threads(1)
    model = filled_model(first)
    saver = PeriodicCheckpointer(WSBCNCheckpointer(model, str(folder)), 1, max_to_keep=2)
    saver.recent_checkpoints = saver.checkpointer.periodic_checkpoints()
    calls = 0
    armed = False

    def deadly(function):
        def call(*args, **kwargs):
            nonlocal calls
            for step in (lambda: function(*args, **kwargs), lambda: None):
                calls += armed
                if calls == kill_at and armed:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = step() or None
            return result

        return call

    if kill_at is not None:
        # Not os.open: its result is needed.
        for name in ("fsync", "replace", "remove"):
            setattr(os, name, deadly(getattr(os, name)))
    for iteration in range(first, first + 1000):
        armed = iteration > first
        with torch.no_grad():
            model.weight.fill_(iteration)
        pipe.send(("start", iteration))
        saver.step(iteration)
        pipe.send(("done", iteration))
        if armed and kill_at is not None:
            pipe.send(("calls", calls))
            return


def start_saver(folder, first, kill_at=None):
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=save_for_ever, args=(folder, first, writer, kill_at))
    process.start()
    writer.close()
    return process, reader


def rest_of(reader):
    """Messages that were sent before the process ended."""
    messages = []
    while reader.poll(30):
        try:
            messages.append(reader.recv())
        except EOFError:
            break
    return messages


def newest_file(folder):
    return max(int(n[6:-4]) for n in os.listdir(folder) if n.endswith(".pth"))


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    logger = logging.getLogger("wsbcn_d2.checkpoint.checkpointer")
    monkeypatch.setattr(logger, "warning", lambda m, *args: messages.append(m % args))
    return messages


@pytest.mark.timeout(120)
def test_a_saver_killed_at_any_moment_leaves_its_newest_checkpoint(tmp_path, warnings):
    process, reader = start_saver(tmp_path, 0)
    durations = []
    while len(durations) < 5:
        assert reader.poll(30)
        begun = time.perf_counter() if reader.recv()[0] == "start" else None
        assert begun is not None and reader.poll(30) and reader.recv()[0] == "done"
        durations.append(time.perf_counter() - begun)
    process.kill()
    process.join()
    duration = statistics.median(durations)

    moments = 24
    interrupted = 0
    for moment in range(moments):
        first = iteration_of(tmp_path) + 1
        process, reader = start_saver(tmp_path, first)
        for expected in ("start", "done", "start"):
            assert reader.poll(30) and reader.recv()[0] == expected
        time.sleep(duration * (moment + 0.5) / moments)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        completed = max([first] + [i for event, i in rest_of(reader) if event == "done"])
        interrupted += any(name.endswith(".pth.tmp") for name in os.listdir(tmp_path))
        # Files appear whole, so the newest one there is the newest complete one.
        newest = newest_file(tmp_path)
        assert newest >= completed
        assert iteration_of(tmp_path) == newest
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    # Otherwise the kills came when nothing was being written.
    assert interrupted >= moments // 4, (interrupted, duration)
    assert not [message for message in warnings if "DAMAGED" in message]


@pytest.mark.timeout(120)
def test_a_saver_killed_around_each_system_call_leaves_its_newest_checkpoint(tmp_path, warnings):
    process, reader = start_saver(tmp_path / "count", 0, kill_at=-1)
    os.mkdir(tmp_path / "count")
    process.join(30)
    calls = dict(rest_of(reader)[-1:])["calls"]
    # fsync, rename, fsync of the folder, for the checkpoint and last_checkpoint; a removal later.
    assert calls >= 12
    seen = set()
    for kill_at in range(1, calls + 1):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        process, reader = start_saver(folder, 3, kill_at)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        assert rest_of(reader)[-1] == ("start", 4)
        newest = newest_file(folder)
        seen.add((newest, (folder / "last_checkpoint").read_text()))
        assert iteration_of(folder) == newest
        shutil.rmtree(folder)
    # Before the new file is there, between that and its naming, and after.
    assert seen == {
        (3, "model_0000003.pth"),
        (4, "model_0000003.pth"),
        (4, "model_0000004.pth"),
    }
    assert not [message for message in warnings if "DAMAGED" in message]


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, of iterations 4, 9 and 14."""
    for iteration in (4, 9, 14):
        WSBCNCheckpointer(filled_model(iteration), str(tmp_path)).save(
            f"model_{iteration:07d}", iteration=iteration
        )
    return tmp_path


def damage(path, how):
    if how == "zero-length":
        os.truncate(path, 0)
    elif how == "truncated":
        os.truncate(path, os.path.getsize(path) // 2)
    elif how == "last byte missing":
        os.truncate(path, os.path.getsize(path) - 1)
    elif how == "zeros":
        size = os.path.getsize(path)
        path.write_bytes(b"\0" * size)
    else:
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize(
    "how", ["zero-length", "truncated", "last byte missing", "zeros", "one bit flipped"]
)
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(folder, warnings, how):
    damage(folder / "model_0000014.pth", how)
    assert iteration_of(folder) == 9
    (message,) = warnings
    assert message.startswith("!!! DAMAGED")
    assert f"{folder}/model_0000014.pth: " in message and "Going on from" in message
    assert f"{folder}/model_0000009.pth" in message


@pytest.mark.parametrize("content", [None, b"", b"model_0000099.pth", b"\0" * 17, b"\xff\xfe"])
def test_a_wrong_last_checkpoint_does_not_hide_the_newest(folder, warnings, content):
    (folder / "last_checkpoint").unlink()
    if content is not None:
        (folder / "last_checkpoint").write_bytes(content)
    checkpointer = WSBCNCheckpointer(filled_model(0), str(folder))
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(folder / "model_0000014.pth")
    assert iteration_of(folder) == 14
    assert len(warnings) == 1 and "last_checkpoint" in warnings[0]
    damage(folder / "model_0000014.pth", "truncated")
    assert iteration_of(folder) == 9


def test_with_all_damaged_resuming_is_an_error_and_no_new_start(folder):
    for name in ("model_0000004.pth", "model_0000009.pth", "model_0000014.pth"):
        damage(folder / name, "truncated")
    checkpointer = WSBCNCheckpointer(filled_model(0), str(folder))
    assert checkpointer.has_checkpoint()
    with pytest.raises(CheckpointError) as error:
        checkpointer.resume_or_load("", resume=True)
    for part in ("model_0000004.pth", "model_0000009.pth", "model_0000014.pth", "anew"):
        assert part in str(error.value)
    # Without --resume it is one.
    assert checkpointer.resume_or_load("", resume=False) == {}


def test_a_last_checkpoint_alone_is_an_error_too(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(CheckpointError, match=r"model_final\.pth, which is not there"):
        WSBCNCheckpointer(filled_model(0), str(tmp_path)).resume_or_load("", resume=True)


def test_an_empty_folder_is_a_new_start(tmp_path):
    checkpointer = WSBCNCheckpointer(filled_model(0), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    assert checkpointer.find_loadable() == "" == checkpointer.get_checkpoint_file()
    assert checkpointer.resume_or_load("", resume=True) == {}


def test_a_last_checkpoint_that_a_user_set_back_is_obeyed(folder, warnings):
    (folder / "last_checkpoint").write_text("model_0000004.pth")
    now = time.time() + 5
    os.utime(folder / "last_checkpoint", (now, now))
    assert iteration_of(folder) == 4
    assert warnings == []


def test_checkpoints_of_an_earlier_run_do_not_win_over_a_new_ones(folder):
    # Started anew in the same folder: 4 is newer than 9 and 14.
    time.sleep(0.02)
    WSBCNCheckpointer(filled_model(4), str(folder)).save("model_0000004", iteration=4)
    assert iteration_of(folder) == 4


def test_the_final_checkpoint_counts_as_the_newest(folder):
    WSBCNCheckpointer(filled_model(19), str(folder)).save("model_final", iteration=19)
    assert iteration_of(folder) == 19
    (folder / "last_checkpoint").unlink()
    assert iteration_of(folder) == 19
    damage(folder / "model_final.pth", "zeros")
    assert iteration_of(folder) == 14


def test_a_damaged_file_that_was_named_is_one_clear_error(folder):
    damage(folder / "model_0000004.pth", "truncated")
    with pytest.raises(CheckpointError, match=r"model_0000004\.pth is damaged or incomplete"):
        WSBCNCheckpointer(filled_model(0)).load(str(folder / "model_0000004.pth"))


def test_after_a_damaged_one_it_is_written_again_and_not_deleted_for_its_age(folder):
    damage(folder / "model_0000014.pth", "zeros")
    model = filled_model(0)
    checkpointer = WSBCNCheckpointer(model, str(folder))
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 9
    saver = PeriodicCheckpointer(checkpointer, 5, max_to_keep=2)
    saver.recent_checkpoints = checkpointer.periodic_checkpoints()
    assert [os.path.basename(p) for p in saver.recent_checkpoints] == [
        "model_0000004.pth",
        "model_0000009.pth",
    ]
    for iteration in (14, 19):
        with torch.no_grad():
            model.weight.fill_(iteration)
        saver.step(iteration)
    assert sorted(n for n in os.listdir(folder) if n.endswith(".pth")) == [
        "model_0000014.pth",
        "model_0000019.pth",
    ]
    assert iteration_of(folder) == 19


def test_leftovers_go_at_the_next_start_of_a_training_and_not_of_an_evaluation(folder, warnings):
    (folder / "model_0000019.pth.tmp").write_bytes(b"half")
    (folder / "last_checkpoint.tmp").write_bytes(b"")
    (folder / "notes.tmp").write_bytes(b"a user's")
    # An evaluation, perhaps while the training is saving.
    checkpointer = WSBCNCheckpointer(filled_model(0), str(folder))
    checkpointer.load(checkpointer.find_loadable())
    assert (folder / "model_0000019.pth.tmp").exists()
    checkpointer.resume_or_load("", resume=False)
    assert [name for name in os.listdir(folder) if name.endswith(".tmp")] == ["notes.tmp"]
    assert len(warnings) == 2 and "killed while saving" in warnings[0]


@pytest.fixture(params=["full disk", "file size limit"])
def small_disk(request, tmp_path):
    """A folder with room for one checkpoint (4 MB), and hardly for a second."""
    if request.param == "file size limit":
        # Stands in for a disk of that size; the system's answer is EFBIG in the place of ENOSPC.
        folder = tmp_path / "disk"
        folder.mkdir()
        yield (
            folder,
            errno.EFBIG,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, resource.RLIM_INFINITY)),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root and mount for a small file system")
    yield folder, errno.ENOSPC, lambda: None
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_the_previous_checkpoint_stays(small_disk):
    folder, code, fill = small_disk
    model = filled_model(4)
    checkpointer = WSBCNCheckpointer(model, str(folder))
    # One to keep: it must not go before the new one is complete.
    saver = PeriodicCheckpointer(checkpointer, 5, max_to_keep=1)
    saver.step(4)
    fill()
    with pytest.raises(OSError) as error:
        saver.step(9)
    message = str(error.value)
    assert error.value.errno == code
    assert f"cannot write {folder}/model_0000009.pth: {os.strerror(code)}" in message
    assert f"MiB free in {folder}" in message and "make room" in message
    assert f"The last checkpoint is {folder}/model_0000004.pth; --resume" in message
    assert sorted(os.listdir(folder)) == ["last_checkpoint", "model_0000004.pth"]
    assert iteration_of(folder) == 4


def test_an_error_that_is_not_the_disks_is_left_alone(tmp_path):
    checkpointer = WSBCNCheckpointer(filled_model(0, 1), str(tmp_path))
    with pytest.raises((TypeError, AttributeError, PicklingError), match="pickle"):
        checkpointer.save("model_0000001", function=lambda: None)
    assert os.listdir(tmp_path) == []
