"""Frames: a header of two lengths, a msgpack message, and a payload of raw bytes.

::

    ┌──────────────┬─────────────────┬───────────────────┬──────────────────┐
    │ u32 message  │ u32 payload     │ message (msgpack) │ payload (bytes)  │     little-endian
    └──────────────┴─────────────────┴───────────────────┴──────────────────┘

A frame that announces more than the limit is refused on its header alone. Whatever else is wrong with one is a
`ProtocolError` too; after one the stream cannot be trusted, and the connection ends.
"""

from __future__ import annotations

import struct
from typing import Generic, TypeVar

import msgspec

from runners.protocol.messages import Message, ToChild, ToParent

M = TypeVar("M", bound=Message)

_HEADER = struct.Struct("<II")
#: Bytes of one frame, at most.
MAX_FRAME = 256 * 1024 * 1024
#: Bytes that are read at once, but for a frame that is larger.
_READ = 64 * 1024
_encode = msgspec.msgpack.Encoder().encode


class ProtocolError(Exception):
    """The bytes are not what the other side would send: a bug, or something else wrote to the socket."""


class FrameTooLarge(ValueError):
    """A message would not fit in one frame."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size:,} bytes are more than fit in one message ({MAX_FRAME:,}); send it in parts")


def encode(message: Message, payload: bytes = b"") -> bytes:
    """One frame.

    Raises:
        FrameTooLarge: it exceeds `MAX_FRAME`.
    """
    body = _encode(message)
    if len(body) + len(payload) > MAX_FRAME:
        raise FrameTooLarge(len(body) + len(payload))
    return b"".join((_HEADER.pack(len(body), len(payload)), body, payload))


class Decoder(Generic[M]):
    """Turns a stream of bytes, cut anywhere, into messages with their payloads.

    Bytes are read straight into its `buffer`: of a large frame into the frame itself, of which there is no second copy
    then. To have a socket make room for the most that could come costs more than to read what comes, 30 us a time.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decode = decoder.decode
        self._small = memoryview(bytearray(_READ))
        self._large: memoryview | None = None  # the frame that comes, if it is too large for the other one
        self._have = 0
        self._need = _HEADER.size

    def buffer(self) -> memoryview:
        """Where the next bytes are to be read to: never empty."""
        return (self._small if self._large is None else self._large)[self._have :]

    def received(self, count: int) -> list[tuple[M, memoryview]]:
        """The frames that are complete now that `count` bytes have been read into the `buffer`.

        Raises:
            ProtocolError: the stream is broken; read no more.
        """
        self._have += count
        if self._have < self._need:
            return []
        # Payloads are parts of this, and outlive the buffer's next use.
        data = memoryview(bytes(self._small[: self._have])) if self._large is None else self._large.toreadonly()
        frames: list[tuple[M, memoryview]] = []
        position, size, need = 0, len(data), _HEADER.size
        while size - position >= _HEADER.size:
            message_size, payload_size = _HEADER.unpack_from(data, position)
            if message_size + payload_size > MAX_FRAME:
                msg = f"a frame announces {message_size + payload_size:,} bytes; the limit is {MAX_FRAME:,}"
                raise ProtocolError(msg)
            middle = position + _HEADER.size + message_size
            end = middle + payload_size
            if end > size:
                need = end - position
                break
            try:
                message = self._decode(data[position + _HEADER.size : middle])
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                msg = f"a frame of {message_size} bytes is not a message: {error}"
                raise ProtocolError(msg) from error
            frames.append((message, data[middle:end]))
            position = end
        rest = data[position:]
        self._large = None if need <= _READ else memoryview(bytearray(need))
        self._have, self._need = len(rest), need
        if rest:
            (self._small if self._large is None else self._large)[: len(rest)] = rest
        return frames

    def feed(self, data: bytes) -> list[tuple[M, memoryview]]:
        """The frames that `data` completes, for whoever has the bytes already.

        Raises:
            ProtocolError: as `received`.
        """
        frames: list[tuple[M, memoryview]] = []
        view = memoryview(data)
        while view:
            buffer = self.buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            frames += self.received(count)
            view = view[count:]
        return frames


def child_decoder() -> Decoder[ToChild]:
    """A decoder for what the child receives."""
    return Decoder(msgspec.msgpack.Decoder(ToChild))


def parent_decoder() -> Decoder[ToParent]:
    """A decoder for what the parent receives."""
    return Decoder(msgspec.msgpack.Decoder(ToParent))
