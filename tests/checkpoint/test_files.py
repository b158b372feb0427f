"""Files that are whole or not there, and what a full disk says."""

import errno
import os
import random

import pytest
import torch

from wsbcn_d2.checkpoint.files import disk_error, find_damage, replacing, root_os_error


def test_the_disk_has_the_file_before_its_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def replace(source, target):
        events.append(f"rename {os.path.basename(source)} {os.path.basename(target)}")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with replacing(str(tmp_path / "a")) as file:
        file.write(b"content")
        events.append("written")
    assert events == ["written", "fsync a.tmp", "rename a.tmp a", f"fsync {tmp_path.name}"]
    assert (tmp_path / "a").read_bytes() == b"content"


@pytest.mark.parametrize("failing", ["write", "flush", "fsync", "rename"])
def test_whatever_fails_the_old_file_stays_and_the_temporary_one_goes(
    tmp_path, monkeypatch, failing
):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError(errno.ENOSPC, "full")

    if failing in ("fsync", "rename"):
        monkeypatch.setattr(os, "fsync" if failing == "fsync" else "replace", fail)
    with pytest.raises(OSError, match=r"full|No space"), replacing(str(path)) as file:
        file.write(b"new")
        if failing == "write":
            fail()
        if failing == "flush":
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, file.fileno())
            os.close(full)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_no_flipped_bit_changes_what_loads_unnoticed(tmp_path):
    path = str(tmp_path / "model.pth")
    # As large as the archive around it, so that half of the flips hit the weights.
    content = {"weight": torch.arange(600.0), "bias": torch.arange(5), "iteration": 7}
    torch.save(content, path)
    with open(path, "rb") as file:
        good = bytearray(file.read())
    assert find_damage(path) == ""
    draw = random.Random(0)
    found = missed_by_torch = 0
    flips = 300
    for _ in range(flips):
        position, bit = draw.randrange(len(good)), draw.randrange(8)
        bad = good.copy()
        bad[position] ^= 1 << bit
        with open(path, "wb") as file:
            file.write(bad)
        damage = find_damage(path)
        found += bool(damage)
        try:
            loaded = torch.load(path, weights_only=True)
            same = loaded["iteration"] == 7 and all(
                torch.equal(loaded[name], content[name]) for name in ("weight", "bias")
            )
        except Exception:
            continue
        if not same:
            missed_by_torch += 1
            assert damage, f"bit {bit} of byte {position} of {len(good)}"
    # Without a look at the checksums, such weights would be loaded.
    assert missed_by_torch > flips // 4
    assert found > flips // 2


@pytest.mark.parametrize("size", [0, 1, 1000, -1])
def test_a_truncated_archive_is_damaged(tmp_path, size):
    path = str(tmp_path / "model.pth")
    torch.save(torch.arange(600.0), path)
    full = os.path.getsize(path)
    os.truncate(path, size if size >= 0 else full - 1)
    assert f"({size if size >= 0 else full - 1:,} bytes)" in find_damage(path)


def test_what_is_not_there_is_damaged(tmp_path):
    assert "No such file" in find_damage(str(tmp_path / "none.pth"))


def test_the_message_names_the_path_the_reason_and_the_free_space(tmp_path):
    message = disk_error(str(tmp_path / "a.pth"), OSError(errno.ENOSPC, "No space left on device"))
    assert f"cannot write {tmp_path}/a.pth: No space left on device" in message
    assert f"MiB free in {tmp_path}; make room" in message
    assert "no free space to be read" in disk_error("/none/such/a", OSError("other"))


def test_the_error_of_the_disk_is_found_below_torchs():
    try:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            raise RuntimeError("unexpected pos")  # noqa: B904  as torch's writer does
    except RuntimeError as error:
        assert root_os_error(error).errno == errno.ENOSPC
    assert root_os_error(RuntimeError("else")) is None
