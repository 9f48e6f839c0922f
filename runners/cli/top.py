"""``runners top``: the runners of other processes of this user, live in the terminal.

It reads the status files of `runners.supervision.status`, and touches no other process. Rates come from two of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec

from guardrails.core.errors import MissingExtra
from runners.supervision.status import RunnerStatus, UnsafeFolder, default_folders, read_all

_NONE = """\
no runner publishes its status.
Start the program with RUNNERS_STATUS=1 in its environment, or give its runner publish_status=True.
Looked in: {folders}"""


def run(*, once: bool, as_json: bool, folder: Path | None, interval: float) -> int:
    """Show it; the exit status. Where the output is no terminal, it is shown once.

    Raises:
        MissingExtra: rich is not installed, and JSON was not asked for.
    """
    if not as_json and importlib.util.find_spec("rich") is None:
        raise MissingExtra("runners top", extra="cli", module="rich")
    folders = [folder] if folder is not None else _folders()
    if not as_json and not once and sys.stdout.isatty():
        with contextlib.suppress(KeyboardInterrupt):
            _live(folders, interval)
        return 0
    statuses, complaints = _read(folders)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(statuses), indent=2).decode())
    elif statuses:
        _print(statuses)
    else:
        print(_nothing(folders), file=sys.stderr)
    return 1 if complaints else 0


def _folders() -> list[Path]:
    named = os.environ.get("RUNNERS_STATUS", "")
    return [*([Path(named)] if named.startswith("/") else []), *default_folders()]


def _read(folders: list[Path]) -> tuple[list[RunnerStatus], list[str]]:
    """All statuses, and what is wrong with the folders."""
    found: list[RunnerStatus] = []
    complaints = []
    for folder in folders:
        try:
            found += read_all(folder)
        except FileNotFoundError:
            continue
        except UnsafeFolder as error:
            complaints.append(str(error))
        except OSError as error:
            complaints.append(f"{folder} cannot be read: {error.strerror}")
    return found, complaints


def _nothing(folders: list[Path]) -> str:
    return _NONE.format(folders=", ".join(map(str, folders)))


def _print(statuses: list[RunnerStatus]) -> None:
    from rich.console import Console

    from runners.cli.top_view import Rates, view

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a file has no edge
    with console.capture() as shown:  # rich would end the program itself when the reader has gone
        console.print(view(statuses, Rates(), time.time()))
    print(shown.get(), end="")


# Live


def _live(folders: list[Path], interval: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from runners.cli.top_view import Rates, view

    rates = Rates()
    hint = Text("q ends", "dim")
    with _ended_by_sigterm(), _keys(), Live(screen=True, auto_refresh=False) as live:
        while True:
            statuses, complaints = _read(folders)
            rates.update(statuses)
            shown = view(statuses, rates, time.time()) if statuses else Text(_nothing(folders))
            live.update(Group(shown, *(Text(line, "red") for line in complaints), hint), refresh=True)
            if _asked_to_end(interval):
                return


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one, and are not shown."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends it like an exception, so that the terminal is put in order."""

    def end(*_: object) -> NoReturn:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _asked_to_end(seconds: float) -> bool:
    """Wait for so long; whether q was typed, or there is nobody left to type it."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            typed = os.read(sys.stdin.fileno(), 64)
            if not typed or b"q" in typed.lower():
                return True
    return False
