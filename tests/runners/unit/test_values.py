"""Values of function calls: what comes out is what went in, and what is not data is refused."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import uuid

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from runners.protocol.frames import cut, parent_decoder
from runners.protocol.messages import Done
from runners.protocol.parts import SLICE, Parts
from runners.protocol.values import UnsendableError, pack, unpack

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.datetimes(timezones=st.just(dt.UTC)),
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(-9, 9), inner, max_size=4)
    ),
    max_leaves=15,
)
arrays = npst.arrays(
    dtype=st.one_of(
        npst.boolean_dtypes(),
        npst.integer_dtypes(endianness="?"),
        npst.floating_dtypes(endianness="?"),
        npst.complex_number_dtypes(),
        npst.unicode_string_dtypes(),
        npst.byte_string_dtypes(),
        npst.datetime64_dtypes(),
        npst.timedelta64_dtypes(),
    ),
    shape=npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def back(value):
    return unpack(*pack(value))


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@given(trees)
def test_plain_values(value):
    assert back(value) == value


@given(arrays)
def test_arrays(value):
    assert same(back(value), value)


@given(st.lists(arrays, max_size=4))
def test_several_arrays_beside_one_another(values):
    assert all(map(same, back({"a": [values, 1]})["a"][0], values))


@pytest.mark.parametrize(
    "value",
    [
        np.arange(24).reshape(2, 3, 4)[:, ::2, ::-1],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.float32(3), (2, 5)),
        np.arange(10)[3:3],
        np.zeros((0, 7), "u1"),
        np.array(3.5),
        np.zeros(3, "V8"),
    ],
)
def test_arrays_of_any_layout(value):
    assert same(back(value), np.ascontiguousarray(value).reshape(value.shape))


def test_an_array_that_came_can_be_written_to_and_belongs_to_nobody_else():
    body, payload = pack([np.zeros(3), np.zeros(3)])
    first, second = unpack(body, payload)
    first[:] = 1
    assert second.sum() == 0
    assert not any(payload)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (np.float32(0.5), 0.5),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
    ],
)
def test_numpy_numbers_arrive_as_numbers(value, number):
    assert back(value) == number
    assert type(back(value)) is type(number)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: list[int]


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ((1, (2,)), [1, [2]]),
        ({3}, [3]),
        (frozenset({3}), [3]),
        (Point(1, [2]), {"x": 1, "y": [2]}),
        (Colour.RED, "red"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        (collections.OrderedDict(a=1), {"a": 1}),
        (dt.datetime.fromisoformat("2026-01-02T03:00:00"), "2026-01-02T03:00:00"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (dt.timedelta(days=1), "P1D"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.50"), "1.50"),
        ({(1, 2): 3}, {(1, 2): 3}),
        ({b"k": 1, None: 2, 1.5: 3}, {b"k": 1, None: 2, 1.5: 3}),
    ],
)
def test_what_arrives_as_something_else(value, arrives):
    assert back(value) == arrives
    assert type(back(value)) is type(arrives)


def _cycle() -> list:
    cycle: list = []
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), r"a builtins\.object cannot be sent"),
        (print, "builtin_function_or_method"),
        (ValueError, r"a builtins\.type cannot"),
        (1j, r"a builtins\.complex cannot"),
        ([{"deep": object()}], r"builtins\.object"),
        ("half \ud800", "surrogates not allowed"),
        ({"half \ud800": 1}, "surrogates not allowed"),
        (2**64, "ints"),
        (-(2**63) - 1, "ints"),
        (_cycle(), "recursion"),
        ({object(): 1}, r"builtins\.object"),
        (np.array([object()]), r"a numpy\.ndarray cannot"),
        (np.array([1, None]), r"a numpy\.ndarray cannot"),
        (np.zeros(2, dtype=[("a", "i4")]), r"a numpy\.ndarray cannot"),
        (np.zeros(1, dtype=[("a", "i4")])[0], r"a numpy\.void cannot"),
        (np.array(["a"], dtype=np.dtypes.StringDType()), r"a numpy\.ndarray cannot"),
        (np.ma.array([1, 2], mask=[True, False]), "MaskedArray cannot"),
        (np.longdouble(1), "longdouble cannot"),
        (np.timedelta64(3, "ns"), "timedelta64 cannot"),
        (np.datetime64("2026-01-02"), "datetime64 cannot"),
        (np.complex64(1), r"builtins\.complex cannot"),
        ((n for n in ()), r"builtins\.generator"),
    ],
)
def test_what_is_not_data_is_refused_by_name(value, words):
    with pytest.raises(UnsendableError, match=words):
        pack(value)


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_bytes_that_are_no_value(body, payload):
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        unpack(body, payload)


@given(arrays, st.data())
def test_an_array_whose_head_is_damaged_never_reads_beyond_its_bytes(value, data):
    body, payload = pack(value)
    damaged = bytearray(body)
    damaged[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = unpack(bytes(damaged), payload)
    except (ValueError, TypeError, OverflowError, SyntaxError):
        return
    if isinstance(got, np.ndarray):
        assert got.nbytes <= len(payload)


# Large buffers


def sent(value):
    """Through the codec and back."""
    body, payload = pack(value)
    stream = b"".join(header + bytes(rest) for header, rest in cut(Done(1, msgspec.Raw(body)), payload))
    ((message, came),) = parent_decoder().feed(stream)
    return unpack(message.body, came)


def large(*shape, dtype="i4"):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@pytest.mark.parametrize(
    "value",
    [
        large(300, 301),
        large(300, 601)[:, ::2],
        large(300, 301).T,
        large(2, 300, 301)[::-1, :, 5:],
        np.asfortranarray(large(300, 301)),
        np.broadcast_to(np.float32(3), (300, 301)),
        large(400_000, dtype="u1")[::-1],
        large(100_000, dtype=">f8")[::3],
        np.full(50_000, "text", "U4"),
        np.full(50_000, np.datetime64("2026-01-02")),
        np.zeros((0, 300_000)),
    ],
)
def test_large_arrays_of_any_layout(value):
    back = sent([value, 1])[0]
    assert same(back, np.ascontiguousarray(value))
    assert back.flags.writeable
    assert back.flags.aligned


def test_large_and_small_arrays_beside_one_another():
    values = [large(70_000), large(3), large(80_000, dtype="u8"), large(5, dtype="u1"), large(2, dtype="c16")]
    for came, value in zip(sent(values), values, strict=True):
        assert same(came, value)


def test_many_small_arrays_that_are_large_together():
    values = [large(50_000), large(7, dtype="u1")] * 40
    back = sent(values)
    for came, value in zip(back, values, strict=True):
        assert same(came, value)
        assert came.flags.writeable
        assert came.flags.aligned
    back[0][:] = 1
    assert same(back[2], values[2])


def test_a_large_array_is_not_copied_to_be_sent():
    value = large(70_000)
    _, payload = pack(value)
    assert isinstance(payload, Parts)
    (piece,) = payload.large[0].pieces()
    assert np.shares_memory(np.frombuffer(piece, "i4"), value)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    "around",
    [
        lambda data: data,
        lambda data: [data],
        lambda data: ((data, 1), {"name": "x"}),
        lambda data: {"a": {"b": [data]}, "c": data},
        lambda data: [data] * 40,
        lambda data: [*range(20), {"late": data}],
    ],
)
def test_large_bytes_arrive_as_bytes_without_a_copy(kind, around):
    data = bytes(range(256)) * (SLICE // 256)
    body, payload = pack(around(kind(data)))
    assert len(body) < 1000
    assert payload.large[0].as_bytes
    want = msgspec.msgpack.decode(msgspec.msgpack.encode(around(data)))
    assert sent(around(kind(data))) == want


def test_large_bytes_where_they_are_not_looked_for_arrive_too():
    data = bytes(SLICE)
    assert sent([*range(100), data])[-1] == data
    assert sent([[[[[[[data]]]]]]]) == [[[[[[[data]]]]]]]


def test_large_bytes_beside_what_is_not_data():
    with pytest.raises(UnsendableError, match=r"builtins\.object"):
        pack([bytes(SLICE), object()])


@pytest.mark.parametrize("code", [2, 3])
@pytest.mark.parametrize("number", [-1, 1, 2**40])
def test_parts_that_are_not_there(code, number):
    head = ("|u1", [1], number) if code == 2 else number
    body = msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(head)))
    _, payload = pack(large(70_000))
    stream = b"".join(header + bytes(rest) for header, rest in cut(Done(1, msgspec.Raw(body)), payload))
    ((_, came),) = parent_decoder().feed(stream)
    for beside in (came, memoryview(b"abc"), b"abc"):
        with pytest.raises(ValueError, match="there is no part"):
            unpack(body, beside)
