"""A disk with no room left: the only thing that a runner writes to one is its status, when it is asked to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from runners import FunctionRunner
from runners.supervision.status import read_all

pytestmark = pytest.mark.anyio


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    if not sys.platform.startswith("linux") or shutil.which("mount") is None:
        pytest.skip("needs Linux's tmpfs")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def names(folder):
    """What is in it."""
    return [entry.name for entry in folder.iterdir()]


def fill(file) -> None:
    """Take all that is left."""
    with file.open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        while True:
            full.write(bytes(4096))


async def test_calls_are_answered_while_the_disk_is_full_and_the_status_comes_back(
    small_disk, monkeypatch, caplog, until
):
    monkeypatch.setenv("RUNNERS_STATUS", str(small_disk))
    monkeypatch.setattr("runners.supervision.status.INTERVAL", 0.05)
    fill(small_disk / "ballast")
    async with FunctionRunner("calls:echo", workers=2) as echo:
        await until(lambda: "its status cannot be published" in caplog.text)
        assert [await echo(number) for number in range(100)] == list(range(100))
        assert read_all(small_disk) == []
        assert names(small_disk) == ["ballast"]  # nothing half written stays
        (small_disk / "ballast").unlink()
        await until(lambda: read_all(small_disk))
        assert read_all(small_disk)[0].name == "echo"
    assert caplog.text.count("its status cannot be published") == 1
    assert names(small_disk) == []


async def test_a_disk_that_takes_only_a_part_leaves_the_old_status(small_disk, monkeypatch, until):
    monkeypatch.setenv("RUNNERS_STATUS", str(small_disk))
    monkeypatch.setattr("runners.supervision.status.INTERVAL", 0.05)
    async with FunctionRunner("calls:echo", name="n" * 5000) as echo:  # over one page of the file system
        await until(lambda: read_all(small_disk))
        with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        os.truncate(small_disk / "ballast", (small_disk / "ballast").stat().st_size - 4096)  # one page is free
        seen = read_all(small_disk)
        assert await echo(1) == 1
        for _ in range(100):
            await echo(1)
            assert [status.name for status in read_all(small_disk)] == [status.name for status in seen]
