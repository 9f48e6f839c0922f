"""Python values on the wire, for function calls: msgpack, with arrays as raw bytes beside it.

What goes across: None, bool, int (64 bits), float, str, bytes, list, dict, datetime with a time zone, and numpy
    arrays and
numbers. Tuples and sets arrive as lists, dataclasses and msgspec structs as dicts, enums as their values; naive
datetimes, dates, times, durations, UUIDs and Decimals as text. Nothing is pickled: what is not data is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

_ARRAY = 1


class UnsendableError(TypeError):
    """The value holds something that is not data."""


def pack(value: Any) -> tuple[bytes, bytes]:
    """A value as message body and payload.

    Raises:
        UnsendableError: it holds something that cannot be sent; the message names its type.
    """
    try:
        return _encode(value), b""
    except TypeError:  # it holds an array, or something that is refused below with its name
        return _pack_arrays(value)
    except (ValueError, OverflowError, RecursionError) as error:  # surrogates, huge integers, cycles
        raise _unsendable(error) from error


def _pack_arrays(value: Any) -> tuple[bytes, bytes]:
    buffers: list[bytes] = []
    offset = 0

    def hook(thing: Any) -> Any:
        nonlocal offset
        numpy = sys.modules.get("numpy")  # not imported: then there can be no array
        if numpy is not None and _is_array(numpy, thing):
            raw = numpy.ascontiguousarray(thing).tobytes()
            buffers.append(raw)
            head = msgspec.msgpack.encode((thing.dtype.str, thing.shape, offset))
            offset += len(raw)
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
    return body, b"".join(buffers)


def _unsendable(error: Exception) -> UnsendableError:
    return UnsendableError(f"the value cannot be sent between processes: {error}")


def _is_array(numpy: Any, thing: Any) -> bool:
    """Whether it is an array whose bytes are all of it: no objects, no fields, no mask."""
    if not isinstance(thing, numpy.ndarray) or isinstance(thing, numpy.ma.MaskedArray):
        return False
    return not thing.dtype.hasobject and thing.dtype.names is None


def _is_scalar(numpy: Any, thing: Any) -> bool:
    """Whether `item` makes it the same in Python. It makes an int of some times, and nothing else of a long double."""
    kinds = numpy.number | numpy.bool | numpy.str_ | numpy.bytes_
    return isinstance(thing, kinds) and thing.dtype.char not in "mgG"


def unpack(body: bytes | memoryview | msgspec.Raw, payload: bytes | memoryview) -> Any:
    """The value again. Arrays are copies of their own, and can be written to.

    Raises:
        msgspec.DecodeError, ValueError: the bytes are no such value.
    """
    if not payload:
        return _decode(body)
    return msgspec.msgpack.decode(body, ext_hook=partial(_array, payload))


def _array(payload: bytes | memoryview, code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        msg = f"unknown extension {code}"
        raise ValueError(msg)
    import numpy as np  # noqa: PLC0415 - only a process that gets an array needs it

    head: tuple[str, Sequence[int], int] = msgspec.msgpack.decode(bytes(data), type=tuple[str, list[int], int])
    dtype = np.dtype(head[0])
    if dtype.hasobject:
        msg = "an array of objects cannot have been sent"
        raise ValueError(msg)
    count = 1
    for length in head[1]:
        count *= length
    return np.frombuffer(payload, dtype=dtype, count=count, offset=head[2]).reshape(head[1]).copy()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ext_hook=partial(_array, b"")).decode
