"""The same scenarios on sync code, run against pybreaker and against ours: same calls of listeners, errors, states and
counters.
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pybreaker
import pytest

from guardrails.gates.breaker import breaker
from guardrails.testing import FakeClock


class Recorder(pybreaker.CircuitBreakerListener):
    def __init__(self, log, name="one"):
        self.log, self.name = log, name

    def before_call(self, cb, func, *args, **kwargs):
        self.log.append((self.name, "before", cb.name, func.__name__, args, kwargs, cb.current_state))

    def success(self, cb):
        self.log.append((self.name, "success", cb.current_state, cb.fail_counter, cb.success_counter))

    def failure(self, cb, exc):
        self.log.append((self.name, "failure", str(exc), cb.current_state, cb.fail_counter))

    def state_change(self, cb, old_state, new_state):
        # Not current_state: pybreaker still has the old one here if it moved by itself, the new one if another did.
        self.log.append((self.name, old_state.name, new_state.name, cb.fail_counter))


class Theirs:
    def __init__(self):
        self.storage = pybreaker.CircuitMemoryStorage("closed")

    def __call__(self, **options):
        return pybreaker.CircuitBreaker(**{"state_storage": self.storage, **options})

    def advance(self, seconds):
        if self.storage.opened_at is not None:
            self.storage.opened_at -= timedelta(seconds=seconds)


class Ours:
    def __init__(self):
        self.clock = FakeClock()

    def __call__(self, **options):
        return breaker(clock=self.clock, **options)

    def advance(self, seconds):
        self.clock.advance(seconds)


class OursWithStorage(Theirs):
    def __call__(self, **options):
        return breaker(clock=FakeClock(), **{"state_storage": self.storage, **options})


MAKERS = {"pybreaker": Theirs, "ours": Ours, "ours with a storage": OursWithStorage}


class Business(Exception):
    pass


def good(value=7, **kwargs):
    return value


def bad(text="down"):
    raise ValueError(text)


def unruly():
    raise Business


def generate():
    yield 1
    yield 2


def break_off():
    yield 1
    raise ValueError("mid-stream")


class Run:
    """One run of a scenario: everything that can be seen from outside, in order."""

    def __init__(self, make):
        self.make, self.log, self.cb = make, [], None

    def build(self, **options):
        self.cb = self.make(name="api", listeners=[Recorder(self.log)], **options)
        return self.cb

    def do(self, action, *args, **kwargs):
        try:
            said = action(*args, **kwargs)
        except Exception as exc:
            kind = pybreaker.CircuitBreakerError if isinstance(exc, pybreaker.CircuitBreakerError) else type(exc)
            cause = exc.__cause__ or exc.__context__ if kind is pybreaker.CircuitBreakerError else None
            self.log.append(("raised", kind.__name__, type(cause).__name__))
        else:
            self.log.append(("returned", said))
        self.log.append((self.cb.current_state, self.cb.fail_counter, self.cb.success_counter))

    def call(self, *args, **kwargs):
        self.do(self.cb.call, *args, **kwargs)


def trips_and_recovers(run):
    run.build(fail_max=2, reset_timeout=10)
    run.call(good, 1, key=2)
    run.call(bad)
    run.call(good)
    run.call(bad)
    run.call(bad)
    run.call(good)
    run.make.advance(11)
    run.call(good)
    run.call(bad)


def a_failed_probe_opens_it_again(run):
    run.build(fail_max=1, reset_timeout=10)
    run.call(bad)
    run.make.advance(11)
    run.call(bad, "again")
    run.call(good)
    run.make.advance(11)
    run.call(good)


def several_successes_close_it(run):
    run.build(fail_max=1, reset_timeout=10, success_threshold=3)
    run.call(bad)
    run.make.advance(11)
    run.call(good)
    run.call(good)
    run.call(good)
    run.call(bad)
    run.make.advance(11)
    run.call(good)
    run.call(bad)


def without_a_new_error(run):
    run.build(fail_max=2, throw_new_error_on_trip=False)
    run.call(bad)
    run.call(bad)
    run.call(bad)
    run.log.append(run.cb.open())


def exclusions(run):
    run.build(fail_max=2, exclude=[Business, lambda exc: str(exc) == "mine"])
    run.call(bad)
    run.call(unruly)
    run.call(bad)
    run.call(bad, "mine")
    run.cb.add_excluded_exception(ValueError)
    run.call(bad)
    run.cb.remove_excluded_exception(ValueError)
    run.cb.add_excluded_exceptions(KeyError, OSError)
    run.log.append(run.cb.excluded_exceptions[2:])
    run.call(bad)
    run.call(bad)
    run.make.advance(61)
    run.call(unruly)


def an_excluded_probe_closes_it(run):
    run.build(fail_max=1, exclude=[Business], reset_timeout=10)
    run.call(bad)
    run.make.advance(11)
    run.call(unruly)


def by_hand(run):
    run.build(fail_max=3, reset_timeout=10)
    run.call(bad)
    run.log.append(run.cb.open())
    run.call(good)
    run.cb.half_open()
    run.call(good)
    run.cb.half_open()
    run.call(bad)
    run.cb.close()
    run.call(good)
    run.cb.close()


def several_listeners(run):
    first = run.build(fail_max=1).listeners[0]
    second, third = Recorder(run.log, "two"), Recorder(run.log, "three")
    run.cb.add_listener(second)
    run.cb.add_listeners(third)
    run.log.append([listener.name for listener in run.cb.listeners])
    run.call(good)
    run.call(bad)
    run.cb.remove_listener(first)
    run.cb.close()
    run.call(good)
    run.log.append([listener.name for listener in run.cb.listeners])


def settings(run):
    run.build()
    run.log.append((run.cb.fail_max, run.cb.reset_timeout, run.cb.success_threshold, run.cb.name))
    run.cb.fail_max, run.cb.reset_timeout, run.cb.success_threshold = 1, 10, 2
    run.log.append((run.cb.fail_max, run.cb.reset_timeout, run.cb.success_threshold))
    run.call(bad)
    run.make.advance(9)
    run.call(good)
    run.cb.reset_timeout = 8
    run.call(good)
    run.call(good)


def blocks(run):
    run.build(fail_max=2)
    run.cb.remove_listener(run.cb.listeners[0])  # pybreaker tells them of an inner function of its own

    def block(fails):
        with run.cb.calling():
            if fails:
                raise ValueError("down")
            return "done"

    for fails in (False, True, True, False):
        run.do(block, fails)


def generators(run):
    run.build(fail_max=1)
    run.do(lambda: list(run.cb.call(generate)))
    run.do(lambda: list(run.cb.call(generate)))


def decorators(run):
    run.build(fail_max=2, throw_new_error_on_trip=True)
    work, fails = run.cb(good), run.cb(bad)
    run.do(work, 3, key=4)
    run.do(fails)
    run.do(fails)
    run.do(work)


def decorators_without_a_new_error(run):
    run.build(fail_max=2, throw_new_error_on_trip=False)
    run.cb.remove_listener(run.cb.listeners[0])  # in a pipeline, before_call gets no function
    work, fails = run.cb(good), run.cb(bad)
    run.do(work, 3, key=4)
    run.do(fails)
    run.do(fails)
    run.do(work)


SCENARIOS = [
    trips_and_recovers, a_failed_probe_opens_it_again, several_successes_close_it, without_a_new_error, exclusions,
    an_excluded_probe_closes_it, by_hand, several_listeners, settings, blocks, generators, decorators,
    decorators_without_a_new_error,
]  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("ours", ["ours", "ours with a storage"])
def test_it_behaves_as_pybreaker(scenario, ours):
    logs = []
    for name in ("pybreaker", ours):
        run = Run(MAKERS[name]())
        scenario(run)
        logs.append(run.log)
    assert logs[1] == logs[0]


def test_the_error_is_caught_as_pybreakers():
    circuit = breaker(fail_max=1)
    with pytest.raises(pybreaker.CircuitBreakerError) as caught:
        circuit.call(bad)
    assert (caught.value.reason, type(caught.value.__cause__)) == ("tripped", ValueError)
    assert 59 < caught.value.retry_after <= 60
    with pytest.raises(pybreaker.CircuitBreakerError):
        circuit.call(good)


def test_a_generator_that_breaks_off_raises_its_own_or_the_new_error():
    circuit = breaker(fail_max=2)
    with pytest.raises(ValueError, match="mid-stream"):
        list(circuit.call(break_off))
    with pytest.raises(pybreaker.CircuitBreakerError):
        list(circuit.call(break_off))
    assert circuit.state == "open"


@pytest.mark.parametrize("make", [Theirs, OursWithStorage])
def test_breakers_that_share_a_storage_share_state_and_counters(make):
    maker = make()
    one, two = maker(fail_max=2, reset_timeout=10), maker(fail_max=2, reset_timeout=10)
    log = []
    two.add_listener(Recorder(log))
    with pytest.raises(ValueError):
        one.call(bad)
    assert two.fail_counter == 1
    with pytest.raises(pybreaker.CircuitBreakerError):
        two.call(bad)
    assert (one.current_state, two.current_state) == ("open", "open") or one.state == "closed"  # ours looks when called
    with pytest.raises(pybreaker.CircuitBreakerError):
        one.call(good)
    maker.advance(11)
    assert one.call(good) == 7
    assert two.call(good) == 7
    assert (one.current_state, two.current_state, two.fail_counter) == ("closed", "closed", 0)
    assert [entry[1:3] for entry in log if entry[1] in ("closed", "open", "half-open")] == [
        ("closed", "open"),
        ("open", "closed"),
    ]


BOTH = pytest.mark.parametrize("make", [Theirs, Ours, OursWithStorage])


@BOTH
def test_a_state_has_a_name(make):
    circuit = make()(fail_max=1)
    assert (circuit.state.name, circuit.current_state) == ("closed", "closed")
    circuit.open()
    assert circuit.state.name == "open"
    circuit.state = "half-open"
    if make is not Theirs:  # whose storage is not set by that
        assert circuit.state.name == circuit.current_state == "half-open"
    with pytest.raises(ValueError, match="'ajar'"):
        circuit.state = "ajar"


def test_a_state_is_a_string_too():
    circuit = breaker()
    assert circuit.state == circuit.state.name == "closed"
    assert isinstance(circuit.state, str)
    assert json.dumps({"state": circuit.state}) == '{"state": "closed"}'
    assert type(circuit.snapshot().state) is str


@pytest.mark.parametrize("build", [pybreaker.CircuitBreaker, breaker])
@pytest.mark.parametrize("state", ["closed", "open", "half-open"])
def test_what_a_storage_holds_is_not_reset_by_a_new_breaker(build, state):
    storage = pybreaker.CircuitMemoryStorage(state)
    storage.opened_at = opened_at = datetime.now(UTC)
    storage.increment_counter()
    circuit = build(state_storage=storage)
    assert (circuit.state.name, circuit.fail_counter, storage.opened_at) == (state, 1, opened_at)


@pytest.mark.parametrize("build", [pybreaker.CircuitBreaker, breaker])
def test_a_storage_of_an_unknown_state_is_refused(build):
    with pytest.raises(ValueError, match="'ajar'"):
        build(state_storage=pybreaker.CircuitMemoryStorage("ajar"))


@pytest.mark.parametrize("make", [Theirs, OursWithStorage])
def test_the_state_that_another_breaker_wrote_is_seen_and_reported(make):
    log = []
    maker = make()
    one, two = maker(), maker(listeners=[Recorder(log)])
    one.open()
    assert (two.state.name, two.state.name) == ("open", "open")
    assert log == [("one", "closed", "open", 0)]


@BOTH
def test_the_other_ways_to_decorate(make):
    circuit = make()(fail_max=2, exclude=None, listeners=None)

    @circuit()
    def work():
        return 7

    assert work() == 7
    assert (circuit.excluded_exceptions, circuit.listeners) == ((), ())


@BOTH
def test_a_system_error_is_one_that_is_not_excluded(make):
    circuit = make()(exclude=[LookupError, lambda exc: "fine" in str(exc)])
    assert [circuit.is_system_error(error) for error in (KeyError(), ValueError("fine"), ValueError("x"))] == [
        *(False, False, True),
    ]


# Threads


class Busy(pybreaker.CircuitBreakerListener):
    """Holds up the first of its calls that is about `which`, and says whether another one begins meanwhile."""

    def __init__(self, which):
        self.which, self.inside, self.other = which, threading.Event(), threading.Event()
        self.together = None

    def _enter(self, which):
        if self.inside.is_set():
            self.other.set()
        elif which == self.which:
            self.inside.set()
            self.together = self.other.wait(0.05)

    def before_call(self, cb, func, *args, **kwargs):
        self._enter("before")

    def success(self, cb):
        self._enter("success")

    def failure(self, cb, exc):
        self._enter("failure")

    def state_change(self, cb, old_state, new_state):
        self._enter("change")


@BOTH
@pytest.mark.parametrize(
    ("which", "act"),
    [
        ("before", lambda circuit: circuit.call(good)),
        ("success", lambda circuit: circuit.call(good)),
        ("failure", lambda circuit: circuit.call(bad)),
        ("change", lambda circuit: circuit.open()),
    ],
)
def test_listeners_are_called_one_at_a_time(make, which, act):
    busy = Busy(which)
    circuit = make()(fail_max=9, listeners=[busy])

    def run():
        with suppress(ValueError):
            act(circuit)

    threads = [threading.Thread(target=run) for _ in range(2)]
    threads[0].start()
    assert busy.inside.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert busy.together is False
    assert busy.other.is_set()


@BOTH
def test_changes_are_reported_in_their_order(make):
    changes = []

    class Chain(pybreaker.CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            changes.append((old_state.name, new_state.name))

    circuit = make()(listeners=[Chain()])
    moves = [circuit.open, circuit.half_open, circuit.close]
    together = threading.Barrier(3)

    def run(move):
        together.wait(30)
        for _ in range(100):
            move()

    threads = [threading.Thread(target=run, args=(move,)) for move in moves]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(changes) == 300
    assert [old for old, _ in changes] == ["closed", *(new for _, new in changes[:-1])]


@BOTH
def test_a_listener_may_use_the_breaker_it_hears_of(make):
    class Closing(pybreaker.CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            if new_state.name == "open":
                cb.close()

    circuit = make()(fail_max=1, listeners=[Closing()])
    with pytest.raises(pybreaker.CircuitBreakerError):
        circuit.call(bad)
    assert circuit.current_state in ("closed", "open")  # pybreaker goes on to write the state that it was in
    assert make is Theirs or circuit.call(good) == 7


# What pybreaker cannot do


@pytest.mark.anyio
async def test_async_functions_without_tornado():
    circuit = breaker(fail_max=2)

    async def work(fails):
        if fails:
            raise ValueError("down")
        return 7

    @circuit(__pybreaker_call_async=True)
    async def decorated(fails):
        return await work(fails)

    assert await circuit.call_async(work, fails=False) == await decorated(False) == 7
    with pytest.raises(ValueError):
        await circuit.call_async(work, True)
    with pytest.raises(pybreaker.CircuitBreakerError):
        await decorated(True)
    assert (circuit.state, decorated.__name__) == ("open", "decorated")


def test_an_unknown_word_to_decorate_with_is_refused():
    with pytest.raises(TypeError, match="'retries'"):
        breaker(name="api")(retries=3)


@pytest.mark.anyio
async def test_an_async_function_raises_the_new_error_if_asked_to():
    circuit = breaker(fail_max=1, throw_new_error_on_trip=True)

    @circuit
    async def work(fails):
        if fails:
            raise ValueError("down")
        return 7

    assert await work(False) == 7
    with pytest.raises(pybreaker.CircuitBreakerError):
        await work(True)


def test_async_code_is_refused_where_it_would_be_unguarded():
    circuit = breaker(throw_new_error_on_trip=True)

    async def work():
        raise AssertionError

    async def stream():
        yield 1

    for fn in (work, stream):
        with pytest.raises(TypeError, match="which is async"):
            circuit.call(fn)
    with pytest.raises(TypeError, match="async generators"):
        circuit(stream)


def test_a_generator_closed_early_is_nobodys_failure():
    circuit = breaker(fail_max=1)
    items = circuit.call(generate)
    next(items)
    items.close()
    assert circuit.state == "closed"
