"""The worker's end of the socket: blocking reads, and writes that go out together.

One thread uses it, the worker's main thread, so there is no lock. Answers are gathered and sent with one system call
when the worker has nothing more to do at once, or after half a millisecond.
"""

from __future__ import annotations

import socket
import time

import msgspec

from runners.protocol.frames import Decoder, FrameTooLarge, encode
from runners.protocol.messages import Done, ErrorInfo, Failed, Item, Message, ToChild
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
        self._inbox: list[tuple[ToChild, memoryview]] = []
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._out_since = 0.0
        self.streams = 0

    def receive(self) -> tuple[ToChild, memoryview]:
        """The next message, waiting for it."""
        while not self._inbox:
            self._inbox.extend(self._decoder.feed(self._read(0)))
        return self._inbox.pop(0)

    def poll(self, *, wait: bool) -> list[tuple[ToChild, memoryview]]:
        """Everything that has come. With `wait`, blocks until there is something."""
        frames, self._inbox = self._inbox, []
        if frames:
            return frames
        try:
            data = self._read(0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        return self._decoder.feed(data)

    def _read(self, flags: int) -> bytes:
        try:
            data = self._sock.recv(_READ, flags)
        except (ConnectionResetError, BrokenPipeError) as error:
            raise ParentGone from error
        if not data:
            raise ParentGone
        return data

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Send now."""
        self._put(encode(message, payload))
        self.flush()

    def item(self, job: Job, body: bytes, payload: bytes = b"") -> None:
        """Send an item of a job's stream, with the next flush.

        Raises:
            EngineError: it is too large to be sent.
        """
        try:
            frame = encode(Item(job.id, msgspec.Raw(body)), payload)
        except FrameTooLarge as error:
            raise EngineError("unsendable", f"an item is too large: {error}") from error
        self._put(frame)

    def done(self, job: Job, body: bytes, payload: bytes = b"") -> None:
        """Answer a job, with the next flush."""
        try:
            frame = encode(Done(job.id, msgspec.Raw(body)), payload)
        except FrameTooLarge as error:
            self.failed(job, ErrorInfo(kind="unsendable", message=f"the result is too large: {error}"))
            return
        self.streams -= job.window > 0
        self._put(frame)

    def failed(self, job: Job, error: ErrorInfo) -> None:
        """Answer a job with an error, with the next flush."""
        self.streams -= job.window > 0
        self._put(encode(Failed(job.id, error)))

    def _put(self, frame: bytes) -> None:
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
        try:
            self._sock.sendall(data)
        except (ConnectionResetError, BrokenPipeError) as error:
            raise ParentGone from error
