"""One worker process as the parent sees it: started, spoken to, listened to, ended.

::

    WorkerProcess.start ──▶ Popen ──▶ on_message* ──▶ on_exit, exactly once

The process is started on the event loop's thread. That takes the milliseconds of a `vfork`, and must be this thread:
the kernel kills the child when the thread that started it ends (see `runners.worker.main`). How its end is
noticed is in `ending`. Everything else here runs on the loop's
thread; nothing needs a lock.

An exit is reported only after everything that the worker sent before it has been read, so that an answer sent with
the last breath still counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from runners.protocol.board import Board
from runners.protocol.frames import ProtocolError, encode, parent_decoder
from runners.protocol.messages import Message, Start, ToParent
from runners.protocol.parts import SLICE, Incoming, Parts, Payload
from runners.spec import WorkerSpec
from runners.supervision.cores import Cores
from runners.supervision.ending import exit_code, reap, when_ended
from runners.supervision.environment import environment
from runners.supervision.exit import Exit
from runners.supervision.oom import LOOK_EVERY, OomWatch
from runners.supervision.outbox import Outbox
from runners.supervision.spawn import cannot_start, grant

#: The variable that marks a worker and what it starts.
_MARK = "RUNNERS_WORKER"
_ROOT = str(Path(__file__).resolve().parents[2])
# Our package, and no other `runners` that the working directory may hold, is imported from where the parent has it;
# the folder is on the path for that one import only, so that nothing else in it can hide a module of the standard
# library. The title comes first, where `ps` shows it.
_PROGRAM = (
    "title = {title}; "
    "import sys; root = sys.argv.pop(1); sys.path.insert(0, root); import runners; sys.path.remove(root); "
    "from runners.worker.title import entitle; entitle(title); "
    f"from runners.worker.guard import guard; guard({_MARK!r}, title); "
    "from runners.worker.main import main; main()"
)
#: What a line of output may begin with, ``<0>`` (worst) to ``<7>``, and how it is logged then.
_LEVELS = {
    b"0": logging.CRITICAL, b"1": logging.CRITICAL, b"2": logging.CRITICAL, b"3": logging.ERROR,
    b"4": logging.WARNING, b"5": logging.INFO, b"6": logging.INFO, b"7": logging.DEBUG,
}  # fmt: skip
_MAX_LINE = 4096
#: Characters of a runner's name in the titles of its processes.
_MAX_TITLE = 60
_KEPT_LINES = 40
#: Bytes that may be on their way in the socket, as far as the system allows: with more, the two sides of a large
#: transfer wait less often for each other where the cores are busy.
_SEND_BUFFER = 1024 * 1024
#: Bytes read from a worker at once.
_READ = 256 * 1024
#: Seconds to wait for the last bytes of a worker that has ended. Only a descendant that inherited its socket can hold
#: them.
_LAST_BYTES = 1.0
#: Of all runners of this process.
_cores = Cores()
_oom_kills_explained: Counter[Path] = Counter()


class WorkerProcess:
    """A child process and the conversation with it."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        on_message: Callable[[ToParent, Incoming], None],
        on_exit: Callable[[Exit], None],
        on_sent: Callable[[Message], None],
        python: str | None = None,
    ) -> None:
        self.spec = spec
        self.pid = 0
        self.exited = False
        self.board: Board | None = None
        self.python = python or sys.executable
        self._on_message = on_message
        self._on_exit = on_exit
        self._on_sent = on_sent
        self._popen: subprocess.Popen[bytes]
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._outbox = Outbox(self._last)
        self._reason: str | None = None
        self._expected: str | None = None
        self._dead = False
        self._code: int | None = None
        self._eof = False
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._pipes: list[asyncio.BaseTransport] = []
        self._own_cores: tuple[int, ...] = ()
        self._oom: OomWatch | None = None
        self._next_look: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start the process and send it the spec.

        Raises:
            WorkerNotFound: the interpreter cannot be run.
            SystemLimitReached: the system has no process, descriptor or memory left for it.
        """
        loop = asyncio.get_running_loop()
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise cannot_start(self.spec, self.python, error) from error
        for end in (ours, theirs):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        try:
            self._spawn(theirs)
            when_ended(loop, self._popen, lambda: self._ended(loop))
        except (
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # TypeError, ValueError: variables that no environment can have; RuntimeError: no thread is left
            ours.close()
            self.kill("start_failed")
            self.abandon()
            raise cannot_start(self.spec, self.python, error) from error
        finally:
            theirs.close()
        ours.setblocking(False)
        connecting = loop.create_task(self._connect(loop, ours))
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            # It takes a few turns of the loop. Event loops differ in what they leave open when they are interrupted
            # in it.
            await asyncio.wait((connecting,))
            raise
        except OSError as error:
            raise cannot_start(self.spec, self.python, error) from error
        self.send(Start(self.spec))

    async def _connect(self, loop: asyncio.AbstractEventLoop, ours: socket.socket) -> None:
        self._transport, _ = await loop.create_unix_connection(lambda: _Connection(self, self._outbox), sock=ours)
        self._outbox.connect(self._transport)
        assert self._popen.stdout is not None  # noqa: S101 - both are pipes, see _spawn
        assert self._popen.stderr is not None  # noqa: S101
        for pipe, level in ((self._popen.stdout, logging.INFO), (self._popen.stderr, logging.WARNING)):
            await self._read_lines(loop, pipe, level)

    def _spawn(self, theirs: socket.socket) -> None:
        self.board = Board.create()
        command = [self.python, "-P", "-c", _program(self.spec.name), _ROOT]
        command += ["--socket", str(theirs.fileno()), "--board", str(self.board.fd), "--parent", str(os.getpid())]
        granted = grant(self.spec, _cores)
        self._own_cores = granted.cpus if self.spec.resources.cpus == "shared" else ()
        command += ["--resources", msgspec.json.encode(granted).decode()]
        with _signals_held_back():
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**environment(self.spec), _MARK: secrets.token_hex(8)},
                pass_fds=(theirs.fileno(), self.board.fd),
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self._oom = OomWatch(self.pid, _oom_kills_explained)
        self._next_look = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)

    # Speaking

    def send(self, message: Message, payload: Payload = b"", *, size: int = 0, now: bool = False) -> bool:
        """Send a message. All of one turn of the event loop go out with one system call, unless it must go `now`. A
        large one goes in slices, behind which small ones about other requests do not wait. `size`: bytes of a request
        and its payload.

        Returns whether its place among all messages is settled. One that goes in slices has its place where the last of
        it is: `on_sent` is called then.

        Nothing happens after the exit.
        """
        if size > SLICE or isinstance(payload, Parts):
            self._outbox.put(message, payload)
            return False
        if self._outbox.waiting and self._outbox.holds_back(message):
            self._outbox.put_behind(message)
            return False
        if not self._out and not now:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(encode(message, payload))
        if now:
            self._flush()
        return True

    def _last(self, message: Message) -> None:
        self._flush()  # what has its place already goes first
        self._on_sent(message)

    @property
    def slices_sent(self) -> int:
        """Slices of large messages that have been sent so far."""
        return self._outbox.written

    def withdraw(self, number: int) -> bool:
        """Do not send the rest of a request; whether the worker does not have it, and never will."""
        return self._outbox.withdraw(number)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def kill(self, reason: str) -> None:
        """End the worker and everything in its process group, at once. `reason` is what its `Exit` will say.

        It may be called in any thread, and without the event loop.
        """
        if self.pid and not self.exited and not self._dead:
            self._reason = self._reason or reason
            _kill_group(self.pid)

    def abandon(self) -> None:
        """Release what this holds without the event loop's help, after `kill`. Waits for the end of the process."""
        if self.pid and not self._dead:
            self._dead, self._code = True, exit_code(self._popen)
            self.exited = True
            for pipe in (self._popen.stdout, self._popen.stderr):
                if pipe is not None and not self._pipes:
                    pipe.close()
        self._let_go()

    def expect_exit(self, reason: str) -> None:
        """The worker was asked to end; should it do so in good order, this is why."""
        self._expected = self._expected or reason

    # Listening

    def received(self, frames: list[tuple[ToParent, Incoming]]) -> None:
        """Pass on what the connection decoded."""
        for message, payload in frames:
            self._on_message(message, payload)

    def connection_ended(self) -> None:
        """The socket is at its end: with the process's exit, all is said."""
        self._eof = True
        self._finish()

    def broken(self, error: ProtocolError) -> None:
        """What came is not the protocol: there is no going on."""
        logging.getLogger("runners").error("%s: worker %d broke the protocol: %s", self.spec.name, self.pid, error)
        self.kill("protocol")

    def log_line(self, level: int, line: str) -> None:
        """A line of the worker's standard output or error."""
        if level >= logging.WARNING:
            self._last_lines.append(line)
        logging.getLogger(f"runners.worker.{self.spec.name}").log(level, "%s", line)

    async def _read_lines(self, loop: asyncio.AbstractEventLoop, pipe: IO[bytes], level: int) -> None:
        transport, _ = await loop.connect_read_pipe(lambda: _Lines(self, level), pipe)
        self._pipes.append(transport)

    # The end

    def moved(self) -> None:
        """The worker was put into another cgroup: its OOM kills are counted there from now on."""
        if self._oom is not None:
            self._oom.look_afresh()

    def _look(self) -> None:
        if self._oom is not None and not self._dead:
            self._next_look = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)
            self._oom.look()

    def _ended(self, loop: asyncio.AbstractEventLoop) -> None:
        # What the worker's own children still do, and whatever of its socket and pipes they hold, ends with it.
        # Before the status is fetched: until then the number of the group cannot belong to anybody else.
        if self.exited:
            return  # abandoned meanwhile
        _kill_group(self.pid)
        self._dead, self._code = True, exit_code(self._popen)  # it has ended: this only fetches the status
        if os.getpid() == 1:
            loop.call_later(_LAST_BYTES, reap, self.pid)
        if self._eof:
            self._finish()
        else:
            loop.call_later(_LAST_BYTES, self._give_up_on_eof)

    def _give_up_on_eof(self) -> None:
        if self._transport is None:  # the event loop could not take the socket
            self.connection_ended()
        elif not self.exited:
            self._transport.abort()

    def _finish(self) -> None:
        if not self._eof or self.exited:
            return
        if not self._dead:
            # The socket ended first. The process is about to; one that closed its socket and lives on is of no use.
            asyncio.get_running_loop().call_later(_LAST_BYTES, self.kill, "disconnected")
            return
        self.exited = True
        asyncio.get_running_loop().call_soon(self._report)

    def _report(self) -> None:
        # One turn later, so that the last lines of standard error, which tell why, have been read too.
        for transport in self._pipes:
            transport.close()
        reason = self._reason or (self._expected if self._code in (0, None) else None)
        sent_by_somebody = reason is None and self._code == -signal.SIGKILL
        oom = self._oom.killed() if sent_by_somebody and self._oom is not None else None
        try:
            self._on_exit(Exit(self._code, reason, "\n".join(self._last_lines), oom))
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._outbox.clear()
        if self._next_look is not None:
            self._next_look.cancel()
        _cores.give_back(self._own_cores)
        self._own_cores = ()
        if self.board is not None:
            self.board.close()
            self.board = None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _program(name: str) -> str:
    title = "runners: " + "".join(filter(str.isprintable, name))[:_MAX_TITLE] + " worker"
    return _PROGRAM.replace("{title}", ascii(title))  # whatever the encoding of the command line


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """What is started here has SIGTERM and SIGINT blocked until it has its own handlers; see `runners.worker.main`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Connection(asyncio.BufferedProtocol):
    """The socket's reading side. Large parts are read to where they stay."""

    def __init__(self, process: WorkerProcess, outbox: Outbox) -> None:
        self._process = process
        self._decoder = parent_decoder()
        self._transport: asyncio.BaseTransport | None = None
        self._outbox = outbox
        self._buffer = memoryview(bytearray(_READ))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's interface
        return self._buffer if self._decoder.room is None else self._decoder.room

    def buffer_updated(self, nbytes: int) -> None:
        decoder = self._decoder
        try:
            frames = decoder.feed(bytes(self._buffer[:nbytes])) if decoder.room is None else decoder.filled(nbytes)
        except ProtocolError as error:
            self._process.broken(error)
            if self._transport is not None:
                self._transport.close()
            return
        self._process.received(frames)

    def pause_writing(self) -> None:
        self._outbox.pause()

    def resume_writing(self) -> None:
        self._outbox.resume()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        self._process.connection_ended()


class _Lines(asyncio.Protocol):
    """One of the worker's output pipes, cut into lines of bounded length."""

    def __init__(self, process: WorkerProcess, level: int) -> None:
        self._process = process
        self._level = level
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._rest) > _MAX_LINE:
            whole = len(self._rest) - len(self._rest) % _MAX_LINE
            self._emit(self._rest[:whole])
            self._rest = self._rest[whole:]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        if self._rest:
            self._emit(self._rest)
            self._rest = b""

    def _emit(self, line: bytes) -> None:
        level = self._level
        if line[:1] == b"<" and line[2:3] == b">" and line[1:2] in _LEVELS:  # as systemd's daemons say how bad it is
            level, line = _LEVELS[line[1:2]], line[3:]
        for start in range(0, len(line) or 1, _MAX_LINE):
            self._process.log_line(level, line[start : start + _MAX_LINE].decode("utf-8", "replace").rstrip())
