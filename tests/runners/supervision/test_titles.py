"""What `ps` shows for workers and their guards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runners import FunctionRunner

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
PROC = Path("/proc")


def command(pid):
    return (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")


def short(pid):
    return (PROC / str(pid) / "comm").read_text().removesuffix("\n")


def guard_of(worker):
    def mark(pid):
        entries = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        return next((entry for entry in entries if entry.startswith(b"RUNNERS_WORKER=")), None)

    found = []
    for folder in PROC.glob("[0-9]*"):
        try:
            if int(folder.name) != worker and mark(folder.name) == mark(worker):
                found.append(int(folder.name))
        except OSError:
            continue
    (guard,) = found
    return guard


@pytest.mark.parametrize(
    ("name", "shown", "start"),
    [
        ("thumbnail", "runners: thumbnail", "thumbnai"),
        ("a", "runners: a", "a"),
        ('it\'s "q" \\ {x}', 'runners: it\\\'s "q" \\\\ {x}', 'it\'s "q"'),
        ("café", "runners: caf\\xe9", "café"),
        ("a worker", "runners: a worker", "a worker"),
        ("two\nlines\0", "runners: twolines", "twolines"),
        ("n" * 200_000, "runners: " + "n" * 60, "nnnnnnnn"),
    ],
    ids=["plain", "one letter", "quotes", "accent", "role", "unprintable", "long"],
)
async def test_name_and_role_are_shown(until, name, shown, start):
    async with FunctionRunner("calls:echo", name=name) as echo:
        assert await echo(1) == 1
        worker = echo.stats().workers[0].pid
        guard = guard_of(worker)
        await until(lambda: short(guard).startswith("guard:"))
        await until(lambda: "guard" in command(guard)[3])
        own, other = command(worker), command(guard)
        # The titles stand in front, before the program: ps cuts lines off at their end.
        assert own[1:3] == ["-P", "-c"]
        assert own[3][len("title = '") :].startswith(f"{shown} worker")
        assert other[3][len("title = '") :].startswith(f"{shown} guard ")
        assert (own[:3], own[4:]) == (other[:3], other[4:])
        assert short(worker).startswith(f"worker:{start}")
        assert short(guard).startswith(f"guard:{start[:8]}")


async def test_no_variable_is_on_the_command_line(until):
    async with FunctionRunner("calls:echo", environment={"KEY": "hunter2"}) as echo:
        worker = echo.stats().workers[0].pid
        assert not [part for pid in (worker, guard_of(worker)) for part in command(pid) if "hunter2" in part]
