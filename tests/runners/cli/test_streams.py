"""Every command of `runners` with standard streams that are closed, or that nobody reads any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    (),
    ("--help",),
    ("top", "--help"),
    ("top", "--json"),
    ("top", "--once"),
    ("doctor", "--help"),
    ("doctor", "--example"),
    ("doctor", "--only", "allocator", "--offline"),
    ("doctor", "--only", "allocator", "--offline", "--json"),
    ("complete", "--help"),
    ("chat", "--help"),
]
ids = [" ".join(("runners", *command)) for command in COMMANDS]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With one runner to show, whose process is this one."""
    from runners.supervision.status import StatusFile
    from tests.runners.cli.test_top import a_status

    StatusFile(tmp_path / "status").write(a_status())
    variables = {"RUNNERS_STATUS": str(tmp_path / "status"), "PYTHONPATH": os.pathsep.join(sys.path)}
    return {**os.environ, **variables, "PYTHONUNBUFFERED": ""}


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_a_reader_that_is_gone_ends_it_without_a_word(
    command: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "runners", *command],
            stdout=write, stderr=subprocess.PIPE, env=environment, cwd=tmp_path, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (128 + 13, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_closed_streams_are_no_error(
    command: tuple[str, ...], closed: str, environment: dict[str, str], tmp_path: Path
) -> None:
    script = f'exec "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "runners", *command],
        capture_output=True, env=environment, cwd=tmp_path, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == (2 if not command else done.returncode in (0, 1) and done.returncode)
    assert bool(done.stdout) is (">&-" not in closed.replace("2>&-", ""))
