"""Frames: a header of two lengths, a msgpack message, and a payload of raw bytes.

::

    ┌──────────────┬─────────────────┬───────────────────┬──────────────────┐
    │ u32 message  │ u32 payload     │ message (msgpack) │ payload (bytes)  │     little-endian
    └──────────────┴─────────────────┴───────────────────┴──────────────────┘

What is large goes before its message, in slices, between which other frames may stand::

    OPEN size ─▶ SLICE bytes ─▶ SLICE bytes ─▶ ... ─▶ OPEN size ─▶ SLICE ... ─▶ the message, which takes all of them

These headers have a second length that no ordinary frame can have. A frame that announces more than the limit is
refused on its header alone. Whatever else is wrong with one is a `ProtocolError` too; after one the stream cannot be
trusted, and the connection ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from runners.protocol.messages import Message, ToChild, ToParent
from runners.protocol.parts import SLICE, Arriving, Incoming, Part, Parts, Payload, Received

M = TypeVar("M", bound=Message)

_HEADER = struct.Struct("<II")
#: Bytes of one message with all that goes with it, at most.
MAX_FRAME = 256 * 1024 * 1024
#: Parts of one message, at most: all of it in parts of one slice, and a few that are smaller.
_MAX_PARTS = MAX_FRAME // SLICE + 16
_encode = msgspec.msgpack.Encoder().encode

#: In the place of the payload's length. The first length is then the part's, or the slice's.
_OPEN, _OPEN_BYTES, _SLICE, _DISCARD = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFFC
#: The message takes the parts before it; the rest of the length is that of its payload.
_TAKES = 0x80000000
#: The first of these parts is the message itself.
_BODY_APART = 0x40000000
#: The next one is the payload.
_PAYLOAD_APART = 0x20000000
_LENGTH = 0x1FFFFFFF

#: The receiver forgets the parts that have come: their message will not follow.
DISCARD = _HEADER.pack(0, _DISCARD)


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


def cut(message: Message, payload: Payload = b"") -> Iterator[tuple[bytes, bytes | memoryview]]:
    """The same for a message of any size: frames of at most a slice, each as its header and the rest. The last one
    completes the message.

    Raises:
        FrameTooLarge: at once, if it exceeds `MAX_FRAME`.
    """
    body = _encode(message)
    if len(body) + len(payload) > MAX_FRAME:
        raise FrameTooLarge(len(body) + len(payload))
    parts: list[Part] = []
    takes = 0
    if len(body) > SLICE:
        takes |= _BODY_APART
        parts.append(Part.of(body))
        body = b""
    if isinstance(payload, Parts):
        if payload.small:
            takes |= _PAYLOAD_APART
        parts += payload.sent
        payload = b""
    elif len(payload) > SLICE:
        takes |= _PAYLOAD_APART
        parts.append(Part.of(payload))
        payload = b""
    last = _HEADER.pack(len(body), (_TAKES | takes if parts else 0) | len(payload)), body + payload
    return _frames(parts, last)


def _frames(parts: list[Part], last: tuple[bytes, bytes]) -> Iterator[tuple[bytes, bytes | memoryview]]:
    for part in parts:
        yield _HEADER.pack(part.size, _OPEN_BYTES if part.as_bytes else _OPEN), b""
        for piece in part.slices():
            yield _HEADER.pack(piece.nbytes, _SLICE), piece
    yield last


class Decoder(Generic[M]):
    """Turns a stream of bytes, cut anywhere, into messages with their payloads.

    Attributes:
        room: where the next bytes should be read to, before `filled` is called; None: anywhere, and then to `feed`.
            So what is large is read into its place.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self.room: memoryview | None = None
        self._decode = decoder.decode
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 0
        self._parts: list[Arriving] = []
        self._in_parts = 0  # bytes that those will have
        self._left = 0  # bytes of the present slice that have not come
        self._header = bytearray(_HEADER.size)

    def filled(self, count: int) -> list[tuple[M, Incoming]]:
        """So many bytes were read into `room`; returns the frames that they complete.

        Raises:
            ProtocolError: the stream is broken; feed no more.
        """
        room = self.room
        assert room is not None  # noqa: S101 - it was read into
        if not self._left:
            return self.feed(bytes(room[:count]))
        self._parts[-1].filled += count
        self._left -= count
        self._make_room()
        return []

    def feed(self, data: bytes) -> list[tuple[M, Incoming]]:
        """The frames that `data` completes.

        Raises:
            ProtocolError: the stream is broken; feed no more.
        """
        position = self._absorb(memoryview(data), 0) if self._left else 0
        if self._chunks:
            # A large frame comes in many reads: they are joined once, when it is complete.
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks.clear()
        frames: list[tuple[M, Incoming]] = []
        view = memoryview(data)
        size, need = len(data), _HEADER.size
        while size - position >= _HEADER.size:
            message_size, payload_size = _HEADER.unpack_from(data, position)
            takes = 0
            if message_size + payload_size > MAX_FRAME:
                if payload_size >= _DISCARD:
                    self._special(message_size, payload_size)
                    position = self._absorb(view, position + _HEADER.size)
                    continue
                if payload_size & _TAKES:
                    takes, payload_size = payload_size, payload_size & _LENGTH
                if message_size + payload_size > MAX_FRAME:
                    msg = f"a frame announces {message_size + payload_size:,} bytes; the limit is {MAX_FRAME:,}"
                    raise ProtocolError(msg)
            middle = position + _HEADER.size + message_size
            end = middle + payload_size
            if end > size:
                need = end - position
                break
            body, payload = view[position + _HEADER.size : middle], view[middle:end]
            frames.append(self._taken(takes, body, payload) if takes else (self._message(body), payload))
            position = end
        if position < size:
            self._chunks.append(data[position:])
            self._have = size - position
            self._need = need
        if self._parts or self.room is not None:
            self._make_room()
        return frames

    def _message(self, body: memoryview) -> M:
        try:
            return self._decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            msg = f"a frame of {len(body)} bytes is not a message: {error}"
            raise ProtocolError(msg) from error

    # Parts

    def _special(self, size: int, kind: int) -> None:
        """A header of a part."""
        parts = self._parts
        is_open = bool(parts) and not parts[-1].complete
        if kind == _DISCARD:
            parts.clear()
            self._in_parts = 0
        elif kind == _SLICE:
            if not is_open or size > parts[-1].size - parts[-1].filled:
                msg = f"a slice of {size:,} bytes is more than its part has left"
                raise ProtocolError(msg)
            self._left = size
        else:
            self._in_parts += size
            if self._in_parts > MAX_FRAME or len(parts) >= _MAX_PARTS:
                msg = f"parts announce {self._in_parts:,} bytes; the limit is {MAX_FRAME:,}"
                raise ProtocolError(msg)
            if is_open:
                raise ProtocolError("a part begins before the one before it has ended")
            parts.append(Arriving(size, as_bytes=kind == _OPEN_BYTES))

    def _absorb(self, view: memoryview, position: int) -> int:
        """Copy what is there of the present slice to its place; returns where the rest begins."""
        end = min(position + self._left, len(view))
        if end > position:
            part = self._parts[-1]
            part.room(end - position)[:] = view[position:end]
            part.filled += end - position
            self._left -= end - position
        return end

    def _taken(self, takes: int, body: memoryview, payload: memoryview) -> tuple[M, Incoming]:
        """The message that the parts before it belong to."""
        parts, self._parts = self._parts, []
        self._in_parts = 0
        apart = bool(takes & _BODY_APART) + bool(takes & _PAYLOAD_APART)
        if len(parts) < apart or not all(part.complete for part in parts):
            raise ProtocolError("a message takes parts that have not come")
        if takes & _BODY_APART:
            body = parts.pop(0).memory()
        if takes & _PAYLOAD_APART:
            payload = parts.pop(0).memory()
        return self._message(body), Received(payload, parts) if parts else payload

    def _make_room(self) -> None:
        if self._left:
            self.room = self._parts[-1].room(self._left)
        elif self._parts:
            # Read no further than the next header, or the end of a frame between two slices: what follows has a place
            # of its own.
            missing = self._need - self._have if self._chunks else _HEADER.size
            if missing > len(self._header):
                self._header = bytearray(missing)
            self.room = memoryview(self._header)[:missing]
        else:
            self.room = None


def child_decoder() -> Decoder[ToChild]:
    """A decoder for what the child receives."""
    return Decoder(msgspec.msgpack.Decoder(ToChild))


def parent_decoder() -> Decoder[ToParent]:
    """A decoder for what the parent receives."""
    return Decoder(msgspec.msgpack.Decoder(ToParent))
