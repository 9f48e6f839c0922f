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
    """Turns a stream of bytes, cut anywhere, into messages with their payloads."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decode = decoder.decode
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 0

    def feed(self, data: bytes) -> list[tuple[M, memoryview]]:
        """The frames that `data` completes.

        Raises:
            ProtocolError: the stream is broken; feed no more.
        """
        if self._chunks:
            # A large frame comes in many reads: they are joined once, when it is complete.
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks.clear()
        frames: list[tuple[M, memoryview]] = []
        view = memoryview(data)
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
                message = self._decode(view[position + _HEADER.size : middle])
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                msg = f"a frame of {message_size} bytes is not a message: {error}"
                raise ProtocolError(msg) from error
            frames.append((message, view[middle:end]))
            position = end
        if position < size:
            self._chunks.append(data[position:])
            self._have = size - position
            self._need = need
        return frames


def child_decoder() -> Decoder[ToChild]:
    """A decoder for what the child receives."""
    return Decoder(msgspec.msgpack.Decoder(ToChild))


def parent_decoder() -> Decoder[ToParent]:
    """A decoder for what the parent receives."""
    return Decoder(msgspec.msgpack.Decoder(ToParent))
