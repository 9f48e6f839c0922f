"""The worker's end of the socket: blocking reads, and writes that go out together.

One thread uses it, the worker's main thread, so there is no lock. Answers are gathered and sent with one system call
when the worker has nothing more to do at once, or after half a millisecond. A large one is sent at once, from where its
arrays lie.
"""

from __future__ import annotations

import socket
import time

import msgspec

from runners.protocol.frames import Decoder, FrameTooLarge, cut, encode
from runners.protocol.messages import Done, ErrorInfo, Failed, Item, Message, ToChild
from runners.protocol.parts import SLICE, Incoming, Parts, Payload
from runners.worker.engines.base import EngineError, Job

_READ = 256 * 1024
_HOLD = 0.0005
_HOLD_BYTES = 64 * 1024


class ParentGone(Exception):
    """The socket reports end-of-file: the parent closed it or is dead."""


class Channel:
    """Frames in, frames out. Also the `Replies` that engines answer through.

    Attributes:
        streams: streamed jobs without their answer yet; whoever submits one counts it.
    """

    def __init__(self, sock: socket.socket, decoder: Decoder[ToChild]) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._decoder = decoder
        self._inbox: list[tuple[ToChild, Incoming]] = []
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._out_since = 0.0
        self.streams = 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    @property
    def pending(self) -> bool:
        """Whether messages were read that `poll` has not returned."""
        return bool(self._inbox)

    def receive(self) -> tuple[ToChild, Incoming]:
        """The next message, waiting for it."""
        while not self._inbox:
            self._inbox.extend(self._read(0))
        return self._inbox.pop(0)

    def poll(self, *, wait: bool) -> list[tuple[ToChild, Incoming]]:
        """Everything that has come. With `wait`, blocks until there is something, which may be a part of a message."""
        frames, self._inbox = self._inbox, []
        if frames:
            return frames
        try:
            return self._read(0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []

    def _read(self, flags: int) -> list[tuple[ToChild, Incoming]]:
        room = self._decoder.room
        data = b""
        try:
            if room is None:
                data = self._sock.recv(_READ, flags)
                count = len(data)
            else:
                count = self._sock.recv_into(room, 0, flags)
        except (ConnectionResetError, BrokenPipeError) as error:
            raise ParentGone from error
        if not count:
            raise ParentGone
        return self._decoder.feed(data) if room is None else self._decoder.filled(count)

    def send(self, message: Message) -> None:
        """Send now."""
        self._put(message)
        self.flush()

    def item(self, job: Job, body: bytes, payload: Payload = b"") -> None:
        """Send an item of a job's stream, with the next flush.

        Raises:
            EngineError: it is too large to be sent.
        """
        try:
            self._put(Item(job.id, msgspec.Raw(body)), payload, len(body))
        except FrameTooLarge as error:
            raise EngineError("unsendable", f"an item is too large: {error}") from error
        except ParentGone:
            raise
        except Exception as error:  # as in `done`
            raise EngineError("unsendable", f"an item cannot be sent: {type(error).__name__}: {error}") from error

    def done(self, job: Job, body: bytes, payload: Payload = b"") -> None:
        """Answer a job, with the next flush."""
        try:
            self._put(Done(job.id, msgspec.Raw(body)), payload, len(body))
        except FrameTooLarge as error:
            self.failed(job, ErrorInfo(kind="unsendable", message=f"the result is too large: {error}"))
            return
        except ParentGone:
            raise
        except Exception as error:  # MemoryError: there is none for one copy more
            message = f"the result cannot be sent back: {type(error).__name__}: {error}"
            self.failed(job, ErrorInfo(kind="unsendable", message=message))
            return
        self.streams -= job.window > 0

    def failed(self, job: Job, error: ErrorInfo) -> None:
        """Answer a job with an error, with the next flush."""
        self._put(Failed(job.id, error))
        self.streams -= job.window > 0

    def dropped(self, job: Job) -> None:
        """Forget a job that the parent has taken back."""
        self.streams -= job.window > 0

    def _put(self, message: Message, payload: Payload = b"", size: int = 0) -> None:
        if isinstance(payload, Parts) or size + len(payload) > SLICE:
            frames = cut(message, payload)
            self.flush()
            for header, rest in frames:
                self._send(header)
                self._send(rest)
            return
        frame = encode(message, payload)
        if not self._out:
            self._out_since = time.monotonic()
        self._out.append(frame)
        self._out_bytes += len(frame)

    @property
    def due(self) -> bool:
        """Whether held answers should go out now."""
        return bool(self._out) and (self._out_bytes >= _HOLD_BYTES or time.monotonic() - self._out_since >= _HOLD)

    def flush(self) -> None:
        """Send what is held."""
        if not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        self._send(data)

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self._sock.sendall(data)
        except (ConnectionResetError, BrokenPipeError) as error:
            raise ParentGone from error
