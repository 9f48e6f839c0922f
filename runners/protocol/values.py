"""Python values on the wire, for function calls: msgpack, with arrays as raw bytes beside it.

What goes across: None, bool, int (64 bits), float, str, bytes, list, dict, datetime with a time zone, and numpy
    arrays and
numbers. Tuples and sets arrive as lists, dataclasses and msgspec structs as dicts, enums as their values; naive
datetimes, dates, times, durations, UUIDs and Decimals as text. Nothing is pickled: what is not data is refused.

Arrays, and bytes in lists, tuples and dicts, of 256 KiB and more are not copied: they become parts of their own (see
`runners.protocol.parts`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from runners.protocol.frames import MAX_FRAME
from runners.protocol.parts import SLICE, Arriving, Buffer, Incoming, Part, Parts, Payload, Received, small_of

_ARRAY, _LARGE_ARRAY, _LARGE_BYTES = 1, 2, 3
#: Where an array begins in the payload is a multiple of this.
_ALIGNED = 16
#: Smaller arrays are copied out of a large payload, of which they would keep all.
_KEEPS = 64 * 1024
#: Types that hold no bytes.
_PLAIN = frozenset({type(None), bool, int, float, str})
#: How far large bytes are looked for: items of a container, where the first is no number or text, and levels.
_LOOKED_AT, _ALL_LOOKED_AT, _LEVELS = 1024, 32, 4


class UnsendableError(TypeError):
    """The value holds something that is not data."""


def pack(value: Any) -> tuple[bytes, Payload]:
    """A value as message body and payload. Large buffers in the payload are those of the value.

    Raises:
        UnsendableError: it holds something that cannot be sent; the message names its type.
    """
    if type(value) not in _PLAIN and _holds_large(value, _LEVELS):
        return _pack_arrays(_set_apart(value, _LEVELS))
    try:
        return _encode(value), b""
    except TypeError:  # it holds an array, or something that is refused below with its name
        return _pack_arrays(value)
    except (ValueError, OverflowError, RecursionError) as error:  # surrogates, huge integers, cycles
        raise _unsendable(error) from error


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Payload]:
    """`pack` of the arguments of a call. The common ones, numbers and texts, hold nothing that has to be looked for.

    Raises:
        UnsendableError: they hold something that cannot be sent; the message names its type.
    """
    if kwargs:
        return pack((args, kwargs))
    for value in args:
        if type(value) not in _PLAIN:
            return pack((args, kwargs))
    try:
        return _encode((args, kwargs)), b""
    except (ValueError, OverflowError) as error:  # surrogates, huge integers
        raise _unsendable(error) from error


def _pack_arrays(value: Any) -> tuple[bytes, Payload]:
    small: list[Buffer] = []
    large: list[Part] = []
    offset = 0

    def hook(thing: Any) -> Any:
        nonlocal offset
        if isinstance(thing, _Apart):
            large.append(Part.of(thing.buffer, as_bytes=True))
            return msgspec.msgpack.Ext(_LARGE_BYTES, msgspec.msgpack.encode(len(large) - 1))
        numpy = sys.modules.get("numpy")  # not imported: then there can be no array
        if numpy is not None and _is_array(numpy, thing):
            if thing.nbytes >= SLICE:
                large.append(_array_part(numpy, thing))
                head = msgspec.msgpack.encode((thing.dtype.str, thing.shape, len(large) - 1))
                return msgspec.msgpack.Ext(_LARGE_ARRAY, head)
            if offset > MAX_FRAME:
                msg = f"its arrays are more than {MAX_FRAME:,} bytes"
                raise UnsendableError(msg)
            raw = numpy.ascontiguousarray(thing).tobytes()
            padding = -len(raw) % _ALIGNED
            small.append(raw)
            small.append(bytes(padding))
            head = msgspec.msgpack.encode((thing.dtype.str, thing.shape, offset))
            offset += len(raw) + padding
            return msgspec.msgpack.Ext(_ARRAY, head)
        if numpy is not None and _is_scalar(numpy, thing):
            return thing.item()
        msg = f"a {type(thing).__module__}.{type(thing).__qualname__} cannot be sent between processes"
        raise UnsendableError(msg)

    try:
        body = msgspec.msgpack.encode(value, enc_hook=hook)
    except UnsendableError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # keys too
        raise _unsendable(error) from error
    if large or offset > SLICE:
        return body, Parts(small, large)
    return body, b"".join(small)


class _Apart:
    """Stands for large bytes in a value."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer


def _holds_large(value: Any, levels: int) -> bool:
    """Whether there are bytes in it that should be sent as a part of their own."""
    kind = type(value)
    if kind is tuple or kind is list:
        items = value
    elif kind is dict:
        items = value.values()
    else:
        return _is_large(value)
    if len(items) > _ALL_LOOKED_AT:
        if type(next(iter(items))) in _PLAIN:
            return False  # of one kind, most probably
        items = islice(items, _LOOKED_AT)
    for item in items:  # noqa: SIM110 - any() takes a generator, which costs more than the rest
        if type(item) not in _PLAIN and levels and _holds_large(item, levels - 1):
            return True
    return False


def _is_large(value: Any) -> bool:
    kind = type(value)
    if kind is bytes or kind is bytearray:
        return len(value) >= SLICE
    return kind is memoryview and value.nbytes >= SLICE and value.c_contiguous


def _set_apart(value: Any, levels: int) -> Any:
    """A copy of its containers with stand-ins for large bytes."""
    kind = type(value)
    if kind in _PLAIN or not levels + 1:
        return value
    if kind is tuple or kind is list:
        return [_set_apart(item, levels - 1) for item in value]
    if kind is dict:
        return {key: _set_apart(item, levels - 1) for key, item in value.items()}
    return _Apart(value) if _is_large(value) else value


def _array_part(numpy: Any, array: Any) -> Part:
    if array.flags.c_contiguous:
        return Part.of(memoryview(numpy.asarray(array).reshape(-1).view("u1")))
    return Part(array.nbytes, partial(_pieces, numpy, array))


def _pieces(numpy: Any, array: Any) -> Iterator[bytes]:
    """The bytes of an array of any layout, row after row, without a copy of all of it."""
    runs = numpy.nditer(
        array,
        flags=["external_loop", "buffered"],
        op_flags=[["readonly", "contig"]],
        order="C",
        buffersize=max(1, SLICE // array.itemsize),
    )
    for run in runs:
        yield run.tobytes()  # its memory is that of the next one too


def _unsendable(error: Exception) -> UnsendableError:
    return UnsendableError(f"the value cannot be sent between processes: {error}")


def _is_array(numpy: Any, thing: Any) -> bool:
    """Whether it is an array whose bytes are all of it: no objects, no fields, no mask."""
    if not isinstance(thing, numpy.ndarray) or isinstance(thing, numpy.ma.MaskedArray):
        return False
    if thing.dtype.isbuiltin == 2:  # registered with numpy by another library
        msg = (
            f"an array of {thing.dtype.name} cannot be sent between processes: numpy has no such type of its own; send "
            "array.astype('float32'), or array.view('uint8') and its type beside it"
        )
        raise UnsendableError(msg)
    return not thing.dtype.hasobject and thing.dtype.names is None


def _is_scalar(numpy: Any, thing: Any) -> bool:
    """Whether `item` makes it the same in Python. It makes an int of some times, and nothing else of a long double."""
    kinds = numpy.number | numpy.bool | numpy.str_ | numpy.bytes_
    return isinstance(thing, kinds) and thing.dtype.char not in "mgG"


def unpack(body: bytes | memoryview | msgspec.Raw, payload: bytes | Incoming) -> Any:
    """The value again. Arrays can be written to, and share their memory with nothing else. Once for one payload.

    Raises:
        msgspec.DecodeError, ValueError: the bytes are no such value.
    """
    if not payload:
        return _decode(body)
    return msgspec.msgpack.decode(body, ext_hook=partial(_ext, payload))


def _ext(payload: bytes | Incoming, code: int, data: memoryview) -> Any:
    if code == _LARGE_BYTES:
        return _part(payload, msgspec.msgpack.decode(bytes(data), type=int)).data()
    if code not in (_ARRAY, _LARGE_ARRAY):
        return msgspec.msgpack.Ext(code, bytes(data))  # the caller's own
    import numpy as np  # noqa: PLC0415 - only a process that gets an array needs it

    head: tuple[str, Sequence[int], int] = msgspec.msgpack.decode(bytes(data), type=tuple[str, list[int], int])
    dtype = np.dtype(head[0])
    if dtype.hasobject:
        msg = "an array of objects cannot have been sent"
        raise ValueError(msg)
    count = 1
    for length in head[1]:
        count *= length
    if code == _LARGE_ARRAY:
        return np.frombuffer(_part(payload, head[2]).memory(), dtype=dtype, count=count).reshape(head[1])
    small = memoryview(payload) if isinstance(payload, bytes) else small_of(payload)
    array = np.frombuffer(small, dtype=dtype, count=count, offset=head[2]).reshape(head[1])
    return array.copy() if small.readonly or array.nbytes < _KEEPS else array


def _part(payload: bytes | Incoming, number: int) -> Arriving:
    if not isinstance(payload, Received) or not 0 <= number < len(payload.large):
        msg = f"there is no part {number}"
        raise ValueError(msg)
    return payload.large[number]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ext_hook=partial(_ext, b"")).decode
