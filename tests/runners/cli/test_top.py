"""`runners top`: against a real runner in another process, and the live view in a real terminal."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from runners import FunctionRunner
from runners.cli.top_view import Rates, age, bar, rate, sparkline, view
from runners.supervision.status import RunnerStatus, StatusFile, UnsafeFolder, WorkerStatus, read_all, wanted
from tests.support import ROOT, Terminal, wait_for

pytestmark = pytest.mark.slow

IMPORTABLE = ROOT / "tests/runners/supervision/importable"

_PROGRAM = """
import asyncio, sys
sys.path[:0] = [{root!r}, {importable!r}]
from runners import FunctionRunner

async def main():
    async with FunctionRunner("calls:act", workers=2, memory="256MiB", name="worker bees") as act:
        async with FunctionRunner("calls:echo", name="hidden", publish_status=False):
            await act("echo", "a secret argument")
            print("up", flush=True)
            await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


def top(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runners", "top", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment(folder), check=False)


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "RUNNERS_STATUS": str(folder), "COLUMNS": "120"} | {"XDG_RUNTIME_DIR": "", "TERM": "xterm"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "status"


@pytest.fixture
def program(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A program with a runner that is seen, once it is."""
    text = _PROGRAM.format(root=str(ROOT), importable=str(IMPORTABLE))
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert wait_for(lambda: any(status.answered for status in read_all(folder)))
    yield process
    process.kill()
    process.communicate()


def test_one_snapshot_and_nothing_is_left(program: subprocess.Popen[str], folder: Path) -> None:
    shown = top(folder, "--once")
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"worker bees +ready +pid {program.pid}", shown.stdout)
    assert len(re.findall(r"\d+ +ready +[█░]+ [\d.]+ MiB of 256 MiB", shown.stdout)) == 2
    assert "answered 1 " in shown.stdout
    assert "hidden" not in shown.stdout

    told = json.loads(top(folder, "--json").stdout)
    (status,) = told
    assert (status["name"], status["pid"], status["state"]) == ("worker bees", program.pid, "ready")
    assert (status["soft"], status["hard"], status["answered"], status["queued"]) == (256 << 20, 384 << 20, 1, 0)
    assert {worker["state"] for worker in status["workers"]} == {"ready"}
    assert all(worker["private"] > 1 << 20 for worker in status["workers"])
    assert sum(worker["answered"] for worker in status["workers"]) == 1
    assert not set(status) & {"body", "arguments", "requests"}

    (file,) = folder.iterdir()
    assert "secret" not in file.read_text()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)

    assert program.stdin is not None
    program.stdin.write("end\n")
    program.stdin.flush()
    assert program.wait(timeout=10) == 0
    assert list(folder.iterdir()) == []


def test_what_a_killed_program_left_is_not_shown(program: subprocess.Popen[str], folder: Path) -> None:
    program.kill()
    program.wait()
    shown = top(folder, "--once")
    assert shown.returncode == 0
    assert "no runner publishes its status" in shown.stderr
    assert "RUNNERS_STATUS=1" in shown.stderr
    assert str(folder) in shown.stderr
    assert json.loads(top(folder, "--json").stdout) == []


def test_in_a_folder_that_the_user_named_nothing_is_removed(program: subprocess.Popen[str], folder: Path) -> None:
    dead = dead_process()
    for name in (f"{dead}-1.json", f".{dead}-1.json", f"{dead}-report.json", f"{dead}.json", "2024-1.json"):
        (folder / name).write_text("{}")
    before = sorted(path.name for path in folder.iterdir())
    assert len(json.loads(top(folder, "--json", "--folder", str(folder)).stdout)) == 1
    assert len(json.loads(top(folder, "--json").stdout)) == 1
    assert sorted(path.name for path in folder.iterdir()) == before


#: What the dead left in the default folder, and what is somebody else's, as a process that is gone would have it.
_LEFT = ("{dead}-1.json", ".{dead}-1.json", "{dead}-22.json")
_KEPT = ("notes.txt", "{dead}-report.json", "{dead}.json", "{dead}-1.json.bak", "0{dead}-1.json", "{dead}-1-2.json")


@pytest.mark.parametrize("by", ["top", "publisher"])
def test_in_the_default_folder_what_the_dead_left_is_removed(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RUNNERS_STATUS", raising=False)
    folder = tmp_path / "runners"
    folder.mkdir(mode=0o700)
    dead = dead_process()
    for name in (*_LEFT, *_KEPT):
        (folder / name.format(dead=dead)).write_text("half")
    kept = {name.format(dead=dead) for name in _KEPT}
    if by == "top":
        shown = subprocess.run(
            [sys.executable, "-m", "runners", "top", "--json"], capture_output=True, text=True, timeout=20, check=True
        )
        assert json.loads(shown.stdout) == []
        assert {path.name for path in folder.iterdir()} == kept
    else:
        file = StatusFile(folder)
        file.write(a_status())
        assert {path.name for path in folder.iterdir()} == {*kept, f"{os.getpid()}-{file.number}.json"}
        (folder / f"{dead}-1.json").write_text("half")
        file.write(a_status())  # it looks once
        assert (folder / f"{dead}-1.json").exists()
        file.remove()


def dead_process() -> int:
    """A number that was a process's."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def in_order(terminal: Terminal) -> bool:
    """The screen that was there before is shown again, with its cursor, and keys are echoed."""
    while terminal.read():
        pass
    left, cursor = terminal.all.rindex("\x1b[?1049l"), terminal.all.rindex("\x1b[?25h")
    whole = min(left, cursor) > terminal.all.rindex("\x1b[?1049h")
    return whole and termios.tcgetattr(terminal.theirs) == terminal.before


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    with Terminal("runners", "top", "--interval", "0.2", size=(120, 40), env=environment(folder)) as one:
        yield one


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda one: one.type("q"), 0),
        (lambda one: one.type("\x03"), 0),  # Ctrl-C
        (lambda one: one.process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
    ],
    ids=["q", "ctrl-c", "sigterm"],
)
def test_the_live_view(program: subprocess.Popen[str], terminal: Terminal, end: Callable, status: int) -> None:
    terminal.until(r"worker bees[^q]*ready")
    terminal.until(r"\b0/s")  # there was a second status, so the rate is known
    terminal.type("x")  # no key of ours
    if status:
        program.send_signal(signal.SIGSTOP)
        terminal.until(r"not heard of for \d+ s")
    end(terminal)
    assert terminal.end() == status
    assert in_order(terminal)
    assert "Traceback" not in terminal.all


def test_without_rich_the_message_has_the_command(folder: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *rest: None if name == 'rich' else find(name, *rest); "
        "from runners.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "top"]
    done = subprocess.run(
        [*command, "--once"], capture_output=True, text=True, timeout=20, env=environment(folder), check=False
    )
    assert done.returncode == 2
    assert done.stderr == "runners top needs the package 'rich': pip install 'guarded-runners[cli]'\n"
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=20, env=environment(folder), check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_help_teaches_and_wrong_arguments_are_refused(folder: Path) -> None:
    shown = top(folder, "--help")
    assert shown.returncode == 0
    assert "RUNNERS_STATUS=1 python my_program.py" in shown.stdout
    wrong = top(folder, "--interval", "0")
    assert wrong.returncode == 2
    assert "0 is not from 0.05 to 3600 seconds" in wrong.stderr


# The folder


def a_status(**changes: object) -> RunnerStatus:
    worker = WorkerStatus(pid=2, state="ready", private=60 << 20, pss=None, in_flight=1, answered=5, age=75.0)
    fields: dict[str, object] = {
        "pid": os.getpid(), "number": 1, "process_started": 0.0, "at": 100.0, "name": "n", "state": "ready",
        "soft": 64 << 20, "hard": None, "queued": 0, "submitted": 5, "answered": 5, "failed": 0, "expired": 0,
        "cancelled": 0, "redelivered": 0, "restarts": {}, "workers": (worker,),
    }  # fmt: skip
    return RunnerStatus(**{**fields, **changes})


def test_a_folder_that_others_may_enter_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(UnsafeFolder, match="is not private to this user"):
        StatusFile(folder).write(a_status())
    with pytest.raises(UnsafeFolder):
        read_all(folder)
    shown = top(folder, "--once")
    assert shown.returncode == 1
    assert "is not private to this user (it must be yours, with mode 0700)" in shown.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_somebody_else_s_folder_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 54321, 54321)
    with pytest.raises(UnsafeFolder):
        StatusFile(folder).write(a_status())


def test_a_link_in_the_folder_s_place_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        StatusFile(folder).write(a_status())
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_is_replaced_in_one_piece_and_not_written_after_it_was_removed(folder: Path) -> None:
    file = StatusFile(folder)
    for queued in (1, 2):
        file.write(a_status(queued=queued))
        (read,) = read_all(folder)
        assert read.queued == queued
    file.remove()
    file.write(a_status())  # a thread that came late
    assert list(folder.iterdir()) == []


def test_a_number_that_another_process_has_now_is_not_taken_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "runners"
    StatusFile(folder).write(a_status())
    (path,) = folder.iterdir()
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "process_started": told["process_started"] - 60}))
    assert read_all(folder) == []
    assert not path.exists()


def test_what_cannot_be_read_is_left_out(folder: Path) -> None:
    StatusFile(folder).write(a_status())
    (folder / f"{os.getpid()}-99.json").write_text("{}")
    (folder / f"{os.getpid()}-98.json").symlink_to("/etc/passwd")
    os.mkfifo(folder / f"{os.getpid()}-97.json")
    assert [status.name for status in read_all(folder)] == ["n"]


@pytest.mark.parametrize(
    ("choice", "variable", "expected"),
    [
        (None, None, None),
        (None, "0", None),
        (None, "1", "/tmp/runners-"),
        (None, "/x/y", "/x/y"),
        (True, "0", "/tmp/runners-"),
        (True, "/x/y", "/x/y"),
        (False, "1", None),
    ],
)
def test_who_is_seen(choice: bool | None, variable: str | None, expected: str | None) -> None:
    found = wanted(choice, {} if variable is None else {"RUNNERS_STATUS": variable})
    assert (found is None) if expected is None else str(found).startswith(expected)


def test_the_runtime_folder_is_preferred(tmp_path: Path) -> None:
    assert wanted(True, {"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "runners"
    assert str(wanted(True, {"XDG_RUNTIME_DIR": "/nonexistent"})).startswith("/tmp/")


def test_a_variable_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNERS_STATUS", "maybe")
    with pytest.raises(ValueError, match="RUNNERS_STATUS takes 1, 0 or the absolute path of a folder, not 'maybe'"):
        FunctionRunner("calls:echo")


# The view


def shown(*statuses: RunnerStatus, rates: Rates | None = None, now: float = 100.0) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view(statuses, rates or Rates(), now))
    return console.export_text()


def test_rates_are_what_two_statuses_say() -> None:
    rates = Rates()
    rates.update([a_status()])
    assert "-/s" in shown(a_status(), rates=rates)
    rates.update([a_status(at=102.0, answered=65)])
    rates.update([a_status(at=102.0, answered=65)])  # the same again
    assert "30/s" in shown(a_status(at=102.0, answered=65), rates=rates)
    rates.update([a_status(at=103.0, answered=66)])
    assert "1.0/s   queue 0   █▁" in shown(a_status(), rates=rates)
    rates.update([])
    assert rates == Rates()


def test_counts_and_restarts_are_shown_where_there_are_any() -> None:
    text = shown(a_status(failed=2, restarts={"sigkill": 1, "soft_budget": 3}, queued=1234))
    assert "restarts 3 x soft_budget, 1 x sigkill" in text
    assert "queue 1,234   failed 2" in text
    assert "60 MiB of 64 MiB" in text
    assert "1 min" in text
    assert "no worker" in shown(a_status(workers=()))
    assert "not heard of for 50 s" in shown(a_status(), now=150.0)


def test_a_name_cannot_move_the_cursor() -> None:
    assert "?[2Jx[red]" in shown(a_status(name="\x1b[2Jx[red]"))


def test_the_small_parts() -> None:
    assert [bar(share, 4) for share in (-1, 0, 0.5, 1, 9)] == ["░░░░", "░░░░", "██░░", "████", "████"]
    assert [age(seconds) for seconds in (0, 59, 60, 7200, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
    assert [rate(value) for value in (None, 0.0, 0.25, 12_345)] == ["-/s", "0/s", "0.2/s", "12,345/s"]
    assert [sparkline(values) for values in ([], [1], [0, 0], [0, 4, 8])] == ["", "", "▁▁", "▁▅█"]
