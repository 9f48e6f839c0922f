from __future__ import annotations

import array
import gc
import sys
import threading
import types
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from guardrails.strategies.cache.lru import ENTRY_OVERHEAD, BytesLru, Entry, size_of

LIMIT = 10**9


class Model:
    """What an LRU of bytes is, in the plainest way: a list, the one used longest ago first."""

    def __init__(self, most):
        self.most = most
        self.items = []
        self.evicted = 0

    @property
    def used(self):
        return sum(entry.size + ENTRY_OVERHEAD for _, entry in self.items)

    def drop(self, key):
        self.items = [(name, entry) for name, entry in self.items if name != key]

    def put(self, key, entry):
        self.drop(key)
        self.items.append((key, entry))
        while self.used > self.most:
            del self.items[0]
            self.evicted += 1

    def use(self, key):
        found = [entry for name, entry in self.items if name == key]
        if found:
            self.drop(key)
            self.items.append((key, found[0]))
        return found[0] if found else None


KEYS = st.integers(0, 5)


class LruMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.lru = BytesLru(5000)
        self.model = Model(5000)
        self.now = 0.0

    @rule(key=KEYS, size=st.integers(0, 1500) | st.integers(4000, 6000), keep=st.floats(1, 50))
    def put(self, key, size, keep):
        entry = Entry(object(), size, self.now, self.now, self.now + keep)
        assert self.lru.fits(entry) == (size + ENTRY_OVERHEAD <= 5000)
        if not self.lru.fits(entry):
            assert self.lru.pop(key) is dict(self.model.items).get(key)
            self.model.drop(key)
            return
        before = dict(self.model.items)
        gone = self.lru.put(key, entry)
        self.model.put(key, entry)
        left = {id(each) for _, each in self.model.items}
        assert {id(each) for each in gone} == {id(each) for each in before.values()} - left

    @rule(key=KEYS)
    def find(self, key):
        entry = dict(self.model.items).get(key)
        if entry is not None and self.now < entry.keep_until:
            assert self.lru.find(key, self.now) is entry
            self.model.use(key)
        else:
            assert self.lru.find(key, self.now) is None

    @rule(key=KEYS)
    def hit(self, key):
        entry = self.lru.entries.get(key)
        assert entry is self.model.use(key)
        if entry is not None:
            self.lru.entries.move_to_end(key)

    @rule(key=KEYS)
    def pop(self, key):
        assert self.lru.pop(key) is dict(self.model.items).get(key)
        self.model.drop(key)

    @rule()
    def clear(self):
        assert {id(each) for each in self.lru.clear()} == {id(each) for _, each in self.model.items}
        self.model.items = []

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds):
        self.now += seconds

    @invariant()
    def same(self):
        assert list(self.lru.entries.items()) == self.model.items
        assert self.lru.used == self.model.used <= 5000
        assert self.lru.evicted == self.model.evicted


TestLru = LruMachine.TestCase
TestLru.settings = settings(max_examples=60)


def test_hits_of_other_threads_disturb_nothing():
    lru = BytesLru(20_000)
    lock = threading.Lock()
    stop = threading.Event()
    errors = []

    def hit():
        while not stop.is_set():
            for key in range(60):
                if lru.entries.get(key) is not None:
                    try:
                        lru.entries.move_to_end(key)
                    except KeyError:
                        pass
                    except BaseException as exc:
                        errors.append(exc)
                        raise

    def write():
        for number in range(4000):
            with lock:
                lru.put(number % 60, Entry(number, 100, 0, 0, 1))
                if number % 500 == 0:
                    lru.clear()

    threads = [threading.Thread(target=work) for work in (hit, hit, write, write)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads[2:]:
            thread.join()
        stop.set()
        for thread in threads[:2]:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []
    assert lru.used == len(lru.entries) * (100 + ENTRY_OVERHEAD) <= 20_000


class Slotted:
    __slots__ = ("__weakref__", "value")

    def __init__(self, value):
        self.value = value


class OneSlot:
    __slots__ = "value"  # noqa: PLC0205 - allowed, so it happens


class Plain:
    def __init__(self, value):
        self.value = value


class Row(msgspec.Struct):
    value: object


@dataclass(slots=True)
class Data:
    value: object


class Bag(list):
    pass


def bag(value):
    found = Bag()
    found.value = value
    return found


@pytest.mark.parametrize(
    "hold",
    [
        lambda text: text,
        lambda text: [text],
        lambda text: (text,),
        lambda text: {text},
        lambda text: frozenset({text}),
        lambda text: {"a": text},
        lambda text: {text: "a"},
        lambda text: [[{"a": (1, text)}]],
        Slotted,
        Plain,
        Row,
        Data,
        bag,
        lambda text: types.SimpleNamespace(a=text),
        lambda text: text.encode(),
        lambda text: bytearray(text.encode()),
        lambda text: memoryview(text.encode()),
        lambda text: array.array("B", text.encode()),
    ],
    ids=range(18),
)
def test_whatever_holds_a_text_is_at_least_as_large(hold):
    small, large = size_of(hold("x"), LIMIT), size_of(hold("x" * 100_000), LIMIT)
    assert 99_000 <= large - small <= 107_000  # an array has room to grow
    assert 0 < small < 2000


def test_one_object_counts_once():
    text = "x" * 10_000
    assert size_of([text] * 100, LIMIT) < 20_000
    loop = [text]
    loop.append(loop)
    assert size_of(loop, LIMIT) < 20_000


def test_arrays_count_their_data_once():
    numpy = pytest.importorskip("numpy")
    data = numpy.zeros(100_000, dtype=numpy.uint8)
    assert 100_000 <= size_of(data, LIMIT) < 101_000
    assert 50_000 <= size_of(data[:50_000], LIMIT) < 51_000
    assert 100_000 <= size_of([data, data], LIMIT) < 101_000


def test_long_lists_of_numbers_are_counted_without_a_look_at_each():
    numbers = [float(number) for number in range(100_000)]
    assert size_of(numbers, LIMIT) == pytest.approx(sys.getsizeof(numbers) + 24 * 100_000, rel=0.01)
    assert size_of(dict.fromkeys(range(1000)), LIMIT) > 28_000


def test_what_nobody_owns_is_not_searched():
    def function():
        pass

    function.value = "x" * 10_000
    assert size_of([function, Plain, sys, len, Plain(1).__init__], LIMIT) < 300


def test_the_search_ends_when_it_is_too_much():
    class Endless:
        def __getattr__(self, name):
            raise AttributeError(name)

        @property
        def __dict__(self):
            return {"next": Endless()}

    found = size_of(Endless(), 100_000)
    assert 100_000 < found < 101_000


class Broken:
    __slots__ = ()

    @property
    def nbytes(self):
        raise ValueError

    @property
    def __dict__(self):
        raise ValueError


class Odd:
    nbytes = "many"


def test_classes_that_raise_cost_a_little():
    assert size_of(Broken(), LIMIT) == 64
    assert size_of(Odd(), LIMIT) < 1000
    assert size_of(OneSlot(), LIMIT) < 1000


@given(st.recursive(st.text() | st.integers() | st.floats(), lambda inner: st.lists(inner) | st.tuples(inner, inner)))
def test_the_size_is_about_what_python_says(value):
    seen = {}

    def walk(item):
        seen[id(item)] = sys.getsizeof(item)
        if isinstance(item, list | tuple):
            for part in item:
                walk(part)

    walk(value)
    assert size_of(value, LIMIT) >= sum(seen.values())
    gc.collect(0)
