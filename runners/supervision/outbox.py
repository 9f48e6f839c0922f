"""Large messages on their way to a worker, a slice at a time.

One slice is written in a turn of the event loop, and none while the transport's buffer is full. So no write holds the
loop, small messages go out between two slices, and what the worker does not read stays where it lies, uncopied.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from runners.protocol.frames import DISCARD, cut, encode
from runners.protocol.messages import Message
from runners.protocol.parts import Payload

_Frames = Iterator[tuple[bytes, bytes | memoryview]]


class Outbox:
    """The large messages to one worker, and what must not overtake them.

    Args:
        last: called with each message just before the last of it is written. It arrives after all that is written by
            then, and before all that is written later.

    Attributes:
        waiting: those that have not been sent whole, each with its frames.
        written: slices that have been written so far.
    """

    def __init__(self, last: Callable[[Message], None]) -> None:
        self._last = last
        self.written = 0
        self.waiting: deque[tuple[Message, _Frames]] = deque()
        self._transport: asyncio.Transport | None = None
        self._full = False
        self._scheduled = False
        self._next: tuple[bytes, bytes | memoryview] | None = None  # of the first one, once it has begun

    def __len__(self) -> int:
        return len(self.waiting)

    def connect(self, transport: asyncio.Transport) -> None:
        """Write to this from now on."""
        self._transport = transport
        self._schedule()

    def put(self, message: Message, payload: Payload = b"") -> None:
        """Send a message in slices.

        Raises:
            FrameTooLarge: it exceeds the limit of a message.
        """
        self.waiting.append((message, cut(message, payload)))
        self._schedule()

    def holds_back(self, message: Message) -> bool:
        """Whether a small message must go after one that waits here: it is about the same request, or about all."""
        number = getattr(message, "id", None)
        return bool(self.waiting) and (number is None or self._position(number) is not None)

    def put_behind(self, message: Message) -> None:
        """Send a small message after all that waits here."""
        self.waiting.append((message, iter([(encode(message), b"")])))

    def withdraw(self, number: int) -> bool:
        """Send no more of the request of this number; whether the worker will then never know of it."""
        position = self._position(number)
        if position is None:
            return False
        del self.waiting[position]
        if position == 0 and self._next is not None:
            self._next = None
            self.waiting.appendleft((Message(), iter([(DISCARD, b"")])))
            self._schedule()
        return True

    def pause(self) -> None:
        """The transport's buffer is full."""
        self._full = True

    def resume(self) -> None:
        """It has room again."""
        self._full = False
        self._schedule()

    def clear(self) -> None:
        """The worker has gone."""
        self.waiting.clear()
        self._next = None
        self._transport = None

    def _position(self, number: int) -> int | None:
        for position, (message, _) in enumerate(self.waiting):
            if getattr(message, "id", None) == number:
                return position
        return None

    def _schedule(self) -> None:
        if self.waiting and not self._scheduled and not self._full and self._transport is not None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._scheduled = False
        transport = self._transport
        if self._full or transport is None or transport.is_closing() or not self.waiting:
            return
        message, frames = self.waiting[0]
        frame = next(frames) if self._next is None else self._next
        # Looked at now: a message that has been written to its end is no longer one that can be withdrawn.
        self._next = next(frames, None)
        if self._next is None:
            self.waiting.popleft()
            self._last(message)
        self.written += 1
        for part in frame:
            if part:
                transport.write(part)
        self._schedule()
