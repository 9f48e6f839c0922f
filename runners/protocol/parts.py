"""Large buffers beside a message. They are sent from where they lie and received into memory of their own, so each
crosses with one copy: from the sender's array through the socket into the receiver's.

::

    sender                                                        receiver
    Part ── slice, slice, slice ──▶ socket ──▶ Arriving ──▶ an array, or bytes, over the memory they were read into

Nothing is copied before it is sent: until a call has ended, what it was given must not be changed.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence

Buffer = bytes | bytearray | memoryview

#: Bytes from which a buffer is a part of its own, and of which one slice has at most so many.
SLICE = 256 * 1024
#: Memory of an array is advised to use huge pages, where there are any: fewer page faults, twice the speed.
_HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)


class Part:
    """A buffer to send, or several that arrive as one.

    Args:
        size: bytes in all.
        pieces: gives the buffers, in order; asked again when the message is sent again.
        as_bytes: whether it arrives as `bytes`; else as memory that can be written to.
    """

    __slots__ = ("as_bytes", "pieces", "size")

    def __init__(self, size: int, pieces: Callable[[], Iterable[Buffer]], *, as_bytes: bool = False) -> None:
        self.size = size
        self.pieces = pieces
        self.as_bytes = as_bytes

    @classmethod
    def of(cls, buffer: Buffer, *, as_bytes: bool = False) -> Part:
        """One buffer."""
        view = memoryview(buffer).cast("B")
        return cls(view.nbytes, lambda: (view,), as_bytes=as_bytes)

    def slices(self) -> Iterator[memoryview]:
        """Its bytes, at most `SLICE` at a time."""
        for piece in self.pieces():
            view = memoryview(piece)
            for start in range(0, view.nbytes, SLICE):
                yield view[start : start + SLICE]


class Parts:
    """The payload of a message that has large buffers.

    Args:
        small: the bytes that an ordinary payload would hold, in order; may be none.
        large: what is sent beside them.
    """

    __slots__ = ("_small", "large", "small")

    def __init__(self, small: Sequence[Buffer], large: Sequence[Part]) -> None:
        self.small = small
        self.large = large
        self._small = sum(len(buffer) for buffer in small)

    def __len__(self) -> int:
        return self._small + sum(part.size for part in self.large)

    @property
    def sent(self) -> list[Part]:
        """What is sent: first the small ones as one, if there are any."""
        first = [Part(self._small, lambda: self.small)] if self._small else []
        return [*first, *self.large]


#: What goes out beside a message.
Payload = bytes | Parts


class Arriving:
    """A part that is being received."""

    __slots__ = ("_bytes", "_memory", "_view", "filled", "size")

    def __init__(self, size: int, *, as_bytes: bool) -> None:
        self.size = size
        self.filled = 0
        self._bytes: io.BytesIO | None = None
        self._memory: mmap.mmap | None = None
        if as_bytes:
            # The only way to fill a bytes object in place; its memory is zeroed by the system when it is touched.
            self._bytes = io.BytesIO(bytes(size))
            self._view = self._bytes.getbuffer()
        else:
            self._memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if _HUGE_PAGES is not None:
                self._memory.madvise(_HUGE_PAGES)
            self._view = memoryview(self._memory)[:size]

    def room(self, limit: int) -> memoryview:
        """Where its next bytes go, at most `limit` of them."""
        return self._view[self.filled : self.filled + limit]

    @property
    def complete(self) -> bool:
        """Whether all of it has come."""
        return self.filled == self.size

    def memory(self) -> memoryview:
        """What came, as memory that belongs to the holder of this view."""
        return self._view

    def data(self) -> bytes:
        """What came, as bytes; without a copy, if it was sent to arrive so."""
        if self._bytes is None:
            return bytes(self._view)
        self._view.release()
        return self._bytes.getvalue()


class Received:
    """A payload with large parts, as it came.

    Attributes:
        small: the bytes of an ordinary payload.
        large: the parts beside them.
    """

    __slots__ = ("large", "small")

    def __init__(self, small: memoryview, large: list[Arriving]) -> None:
        self.small = small
        self.large = large

    def __len__(self) -> int:
        return len(self.small) + sum(part.size for part in self.large)


#: What came beside a message.
Incoming = memoryview | Received


def small_of(payload: Incoming) -> memoryview:
    """The bytes of an ordinary payload, without the large parts that a peer may have sent beside it."""
    return payload.small if isinstance(payload, Received) else payload
