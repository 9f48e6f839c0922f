from __future__ import annotations

import datetime as dt
import enum
import functools
import itertools
import math
import os
import subprocess
import sys
import uuid
import zoneinfo
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePosixPath, PureWindowsPath

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.strategies.cache.key import LONG, NoKey, chosen_key, digest, key_size, local_key, stable_name, store_key


def work(*args, **kwargs):
    return args, kwargs


def other(*args, **kwargs):
    return args, kwargs


@dataclass
class Query:
    text: str


@dataclass
class Passage:
    text: str


class Row(msgspec.Struct):
    text: str


Pair = namedtuple("Pair", "a b")  # noqa: PYI024


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    A = "a"


class Bits(enum.Flag):
    X = 1
    Y = 2


def key(*args, **kwargs):
    return local_key(work, args, kwargs)


# Each differs from all the others, though many are equal in Python or have the same content.
DIFFERENT = [
    (),
    (None,),
    (0,),
    (0.0,),
    (-0.0,),
    (False,),
    (1,),
    (1.0,),
    (True,),
    (Level.LOW,),
    (Decimal(1),),
    (1 + 0j,),
    (Bits.X,),
    (Bits.X | Bits.Y,),
    (Color.RED,),
    (Color.BLUE,),
    (-1,),
    (-2,),
    (2**64,),
    (10**5000,),
    (math.nan,),
    (math.inf,),
    ("",),
    ("a",),
    (b"a",),
    (bytearray(b"a"),),
    (Word.A,),
    ("a", "b"),
    ("ab",),
    (("a", "b"),),
    (["a", "b"],),
    ({"a", "b"},),
    (frozenset({"a", "b"}),),
    (Pair("a", "b"),),
    ({"a": "b"},),
    ({"a": ["b"]},),
    ({1: "b"},),
    ({True: "b"},),
    ({1: "b", "1": "b"},),
    ([],),
    ([[]],),
    ([], []),
    ({},),
    (set(),),
    (Query("a"),),
    (Passage("a"),),
    (Row("a"),),
    ({"text": "a"},),
    (Query,),
    (Passage,),
    (uuid.UUID(int=1),),
    (PurePosixPath("a"),),
    (PureWindowsPath("a"),),
    (dt.date(2026, 1, 1),),
    (dt.datetime(2026, 1, 1),),  # noqa: DTZ001
    (dt.datetime(2026, 1, 1, tzinfo=dt.UTC),),
    (dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),),
    (dt.time(1),),
    (dt.timedelta(1),),
    ("x" * LONG,),
    ("x" * (LONG + 1),),
    (b"x" * (LONG + 1),),
    ("x" * (LONG + 1), 1),
    ("\ud800",),
    (["\ud800"],),
]


def test_different_arguments_have_different_keys_of_both_kinds():
    keys = [key(*args) for args in DIFFERENT] + [local_key(other, args, {}) for args in DIFFERENT]
    assert len(set(keys)) == len(keys)
    stored = [store_key(each) for each in keys]
    assert len(set(stored)) == len(stored)
    assert {len(each) for each in stored} == {16}


@pytest.mark.parametrize("args", DIFFERENT, ids=range(len(DIFFERENT)))
def test_the_same_arguments_have_the_same_key(args):
    import copy

    again = copy.deepcopy(args)
    assert key(*args) == key(*again)
    assert hash(key(*args)) == hash(key(*again))
    assert store_key(key(*args)) == store_key(key(*again))


def test_keyword_arguments_are_named_and_their_order_plays_no_part():
    assert key(a=1, b="x") == key(b="x", a=1)
    assert key("x" * 2000, a=1, b=2) == key("x" * 2000, b=2, a=1)
    calls = [
        key(1, 2),
        key(1, a=2),
        key(a=1, b=2),
        key(a=2, b=1),
        key(1),
        key(a=1),
        key(b=1),
        key(a=True),
        key(a=True, b=1),
        key(("a",), a=1),
        key("a" * 2000, b=1),
        key(a="a" * 2000, b=1),
        key("a" * 2000, 1),
        key(("a" * 2000, 1)),
    ]
    assert len(set(calls)) == len(calls)
    assert len({store_key(call) for call in calls}) == len(calls)


def test_the_order_of_a_dict_and_of_a_set_plays_no_part():
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key({1: 1, "b": 2}) == key({"b": 2, 1: 1})
    assert key({"a", "b", 3}) == key({3, "b", "a"})


def test_what_a_key_function_chose():
    chosen = [chosen_key(work, each) for each in ("a", ("a",), (("a",),), ["a"], b"a", 1, True, 1.5, ("a", 1), ())]
    assert len(set(chosen)) == len(chosen)
    assert chosen_key(work, ("a", 1)) == chosen_key(work, ("a", 1))
    assert chosen_key(work, "a") == key("a")


class Custom:
    pass


class Text(str):
    __slots__ = ()


class Zone(dt.tzinfo):
    pass


def local_class():
    class Inner:
        pass

    return Inner


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Custom(), "a Custom"),
        ([{"a": Custom()}], "a Custom"),
        (Query(Custom()), "a Custom"),
        (Text("secret"), "a Text"),
        (OrderedDict(a=1), "a OrderedDict"),
        (lambda: 1, "a function"),
        (iter("secret"), "a str_ascii_iterator|a str_iterator"),
        (dt.datetime(2026, 1, 1, tzinfo=Zone()), "a datetime"),
        (local_class(), "a type"),
        (range(3), "a range"),
    ],
)
def test_what_has_no_key_is_named_by_its_type_alone(value, named):
    with pytest.raises(NoKey) as caught:
        key("secret", value)
    assert str(caught.value) in named.split("|")


def test_what_contains_itself_has_no_key():
    loop = []
    loop.append(loop)
    with pytest.raises(NoKey, match="contains itself"):
        key(loop)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def exact(value):
    """`value` as text that says all of it: two values are the same to a cache if and only if these are equal."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return kind + repr(sorted((exact(name), exact(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return kind + repr([exact(item) for item in value])
    return kind + repr(value)


@given(st.lists(values, max_size=3), st.lists(values, max_size=3))
def test_keys_are_equal_exactly_if_the_arguments_are(first, second):
    same = exact(first) == exact(second)
    assert (key(*first) == key(*second)) == same
    assert (digest(*first) == digest(*second)) == same
    assert (store_key(key(*first)) == store_key(key(*second))) == same


def test_a_store_key_is_the_same_in_every_process():
    script = (
        "from guardrails.strategies.cache.key import *\n"
        "from json import dumps as work\n"
        "print(store_key(local_key(work, ('a', {'x', 'y', 'z'}, True), {'b': 2, 'a': None})).hex(),"
        "store_key(local_key(work, ('a', True), {'b': 2, 'a': None})).hex(),"
        "store_key(chosen_key(work, ('a', 1))).hex())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert len(set(said.pop().split())) == 3


class Service:
    def method(self):
        pass

    @classmethod
    def made(cls):
        pass


def test_functions_that_a_name_tells_apart():
    assert stable_name(work) == (__name__, "work")
    assert stable_name(Service.method) == (__name__, "Service.method")
    assert stable_name(Service.made) == (__name__, "Service.made")
    assert stable_name(math.sqrt) == ("math", "sqrt")
    names = [store_key((function, ())) for function in (work, other, Service.method, Service.made)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "function", [lambda: 1, local_class, Service().method, functools.partial(work, 1), Custom()], ids=range(5)
)
def test_functions_that_no_name_tells_apart_have_no_place_in_a_store(function):
    if function is local_class:

        def function():
            pass

    with pytest.raises(TypeError, match="a store needs a function"):
        store_key((function, ()))


def test_pairs_of_numbers_that_are_equal_in_python():
    equal = [0, 0.0, -0.0, False]
    for a, b in itertools.combinations(equal, 2):
        assert key(a) != key(b)
        assert key("x", a) != key("x", b)
        assert key(x=a) != key(x=b)
        assert key([a]) != key([b])


def test_the_size_of_a_key_is_that_of_its_texts():
    small = key_size(key("x"))
    assert 0 < small < 300
    for larger in (
        key("x" * 1001),
        key(b"x" * 1001),
        key(a="x" * 1001),
        key("x" * 1001, True),
        key(1 << 8000),
        chosen_key(work, ("x" * 1001,)),
    ):
        assert 990 <= key_size(larger) - small <= 1400
    assert key_size(key("x" * 5000)) < 300
    assert key_size(key(True)) < 400  # without the class
    assert key_size(key()) < 200
