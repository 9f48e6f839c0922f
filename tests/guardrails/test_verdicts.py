"""Each guard keeps its own verdict, and settles whatever is raised."""

from __future__ import annotations

import pytest

from guardrails import breaker, bulkhead, fallback, guard, keyed, retry
from guardrails.core.outcome import IGNORED, Outcome, classify

pytestmark = pytest.mark.anyio


def is_bad(result):
    return result == "bad"


def is_worse(result):
    return result == "worse"


def on(pipeline):
    @pipeline
    async def call(result):
        return result

    return call


async def test_two_breakers_each_with_its_own_failures():
    bad, worse = breaker(fail_max=10, failure_if=is_bad), breaker(fail_max=10, failure_if=is_worse)
    plain = breaker(fail_max=10)
    call = on(guard(plain, bad, worse))
    for result in ("bad", "bad", "worse"):
        await call(result)
    assert (bad.fail_counter, worse.fail_counter, plain.fail_counter) == (0, 1, 3)
    await call("good")
    for result in ("worse", "bad", "bad"):
        await call(result)
    assert (bad.fail_counter, worse.fail_counter, plain.fail_counter) == (2, 0, 3)


def test_two_breakers_of_a_sync_function_stacked():
    bad, worse = breaker(fail_max=10, failure_if=is_bad), breaker(fail_max=10, failure_if=is_worse)

    @bad
    @worse
    def call(result):
        return result

    call("worse")
    assert (bad.fail_counter, worse.fail_counter) == (0, 1)


async def test_a_breaker_beside_a_classify_result_of_the_pipeline():
    circuit, other = breaker(fail_max=10, failure_if=is_bad), breaker(fail_max=10)
    call = on(guard(other, circuit, classify_result=lambda result: Outcome("failure" if result == "x" else "success")))
    await call("bad")
    assert (circuit.fail_counter, other.fail_counter) == (1, 0)
    await call("x")
    assert (circuit.fail_counter, other.fail_counter) == (2, 1)


async def test_a_breaker_inside_keyed():
    circuits = keyed(lambda name: breaker(name=name, fail_max=10, failure_if=is_bad), key=lambda result: "one")
    outer = breaker(fail_max=10)
    call = on(guard(outer, circuits))
    await call("bad")
    assert circuits.guard_of("one").fail_counter == 1
    assert outer.fail_counter == 0  # it is the verdict of that guard alone
    await call("good")
    assert circuits.guard_of("one").fail_counter == 0


async def test_a_retry_sees_the_failures_of_every_breaker():
    results = ["bad", "worse", "good"]
    bad, worse = breaker(failure_if=is_bad), breaker(failure_if=is_worse)

    @guard(retry(attempts=3, wait=0, budget=None), bad, worse)
    async def call():
        return results.pop(0)

    assert await call() == "good"


async def test_a_failure_if_that_fails_is_logged_and_counts_as_nothing(caplog):
    bad, worse = breaker(failure_if=lambda result: 1 / 0), breaker(failure_if=is_worse)
    assert await on(guard(bad, worse))("worse") == "worse"
    assert (bad.fail_counter, worse.fail_counter) == (0, 1)
    assert "classify_result failed on a str" in caplog.text


def business(exc):
    return IGNORED if isinstance(exc, KeyError) else classify(exc)


async def test_the_classify_of_a_nested_pipeline_holds_or_is_refused():
    circuit = breaker()
    nested = guard(circuit, classify=business)

    @guard(retry(budget=None), nested)
    async def call():
        raise KeyError

    with pytest.raises(KeyError):
        await call()
    assert circuit.fail_counter == 0
    guard(retry(), nested, classify=business)
    with pytest.raises(ValueError, match="classify was given to a pipeline and, another one, to a pipeline inside it"):
        guard(retry(), nested, classify=lambda exc: Outcome("failure", exc))
    with pytest.raises(ValueError, match="classify was given"):
        guard(nested, guard(bulkhead(2), classify=lambda exc: Outcome("failure", exc)))
    with pytest.raises(ValueError, match="classify_result was given"):
        guard(
            guard(circuit, classify_result=lambda result: Outcome("failure")),
            guard(bulkhead(2), classify_result=lambda result: Outcome("success")),
        )


def test_the_classify_of_stacked_pipelines_holds_or_is_refused():
    inner = guard(bulkhead(2), classify=business)(lambda: None)
    with pytest.raises(ValueError, match="classify was given"):
        guard(breaker(), classify=lambda exc: Outcome("failure", exc))(inner)


# Whatever is raised


def interrupt(_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("count", [1, 2])
async def test_an_interrupt_in_failure_if_settles_every_gate(count):
    places = bulkhead(1)
    circuits = [breaker(failure_if=interrupt) for _ in range(count)]
    call = on(guard(*circuits, places))
    with pytest.raises(KeyboardInterrupt):
        await call("result")
    assert places.in_flight == 0
    assert circuits[0].fail_counter == 0
    sync = guard(*circuits, places)(lambda: "result")
    with pytest.raises(KeyboardInterrupt):
        sync()
    assert places.in_flight == 0


async def test_an_interrupt_in_classify_settles_every_gate():
    places, more = bulkhead(1), bulkhead(1)
    pipeline = guard(places, more, classify=interrupt)

    @pipeline
    async def call():
        raise ValueError

    @pipeline
    async def stream():
        yield 1
        raise ValueError

    @pipeline
    def items():
        yield 1
        raise ValueError

    with pytest.raises(KeyboardInterrupt):
        await call()
    with pytest.raises(KeyboardInterrupt):
        async with pipeline:
            raise ValueError
    with pytest.raises(KeyboardInterrupt):
        with pipeline:
            raise ValueError
    with pytest.raises(KeyboardInterrupt):
        _ = [item async for item in stream()]
    with pytest.raises(KeyboardInterrupt):
        list(items())
    assert (places.in_flight, more.in_flight) == (0, 0)


async def test_an_interrupt_while_a_gate_settles_leaves_no_other_unsettled():
    class Listener:
        def before_call(self, circuit, func, *args, **kwargs):
            pass

        def success(self, circuit):
            raise KeyboardInterrupt

        def failure(self, circuit, exc):
            raise KeyboardInterrupt

        def state_change(self, circuit, old, new):
            pass

    places = bulkhead(1)
    pipeline = guard(places, breaker(listeners=[Listener()]), check_order=False)

    async def fails():
        raise ValueError

    for call in (lambda: on(pipeline)("fine"), pipeline(fails)):
        with pytest.raises(KeyboardInterrupt):
            await call()
        assert places.in_flight == 0
    with pytest.raises(KeyboardInterrupt):
        async with pipeline:
            pass
    assert places.in_flight == 0


async def test_an_interrupt_under_a_strategy_settles_every_gate():
    places = bulkhead(1)
    call = on(guard(fallback(0), retry(), breaker(failure_if=interrupt), places))
    with pytest.raises(KeyboardInterrupt):
        await call("result")
    assert places.in_flight == 0
