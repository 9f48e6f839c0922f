from __future__ import annotations

from types import SimpleNamespace

import anyio
import pytest

from guardrails import breaker, guard
from guardrails.core.outcome import Outcome
from guardrails.errors import Rejected
from guardrails.strategies.fallback import FallbackUsed, fallback
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


class HTTPError(Exception):
    def __init__(self, status):
        self.status_code = status


def failing(error):
    async def work(*args, **kwargs):
        raise error

    return work


async def other(a, *, b):
    await anyio.lowlevel.checkpoint()
    return a + b


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError(), "failure"), (HTTPError(429), "throttled"), (Rejected("g", reason="open"), "open")],
)
async def test_failures_throttling_and_refusals_are_answered(error, reason):
    with decisions() as seen:
        assert await fallback("sorry", name="f")(failing(error))() == "sorry"
    assert seen == [FallbackUsed("f", reason)]


async def test_a_clients_own_mistake_is_its_own_unless_asked_for():
    error = HTTPError(404)
    with pytest.raises(HTTPError) as caught:
        await fallback(1)(failing(error))()
    assert caught.value is error
    assert await fallback(1, on=HTTPError)(failing(error))() == 1
    assert await fallback(1, on=(KeyError, lambda exc: exc is error))(failing(error))() == 1
    with pytest.raises(HTTPError):
        await fallback(1, on=KeyError)(failing(error))()


async def test_cancellation_is_never_answered():
    with anyio.CancelScope() as scope:
        scope.cancel()
        await fallback(1)(anyio.sleep_forever)()
        raise AssertionError
    assert scope.cancelled_caught


async def test_a_function_gets_the_arguments_and_the_error_if_it_takes_one():
    error = ValueError()
    assert await fallback(other)(failing(error))(3, b=4) == 7
    assert await fallback(lambda a, error: (a, error))(failing(error))(3) == (3, error)
    assert fallback(lambda error=None: error)(lambda error: SimpleNamespace(status_code=500))(error=5) == 5


async def test_a_returned_failure_is_answered_and_passed_on_when_narrowed():
    bad = SimpleNamespace(status_code=503)

    async def work():
        return bad

    assert await fallback(1)(work)() == 1
    assert await fallback(1, on=ValueError)(work)() is bad
    assert fallback(1)(lambda: bad)() == 1
    assert fallback(1, on=ValueError)(lambda: bad)() is bad


async def test_the_first_error_is_the_context_of_the_fallbacks_own():
    first = ValueError()

    async def broken():
        raise KeyError

    with pytest.raises(KeyError) as caught:
        await fallback(broken)(failing(first))()
    assert caught.value.__context__ is first


def test_a_sync_function():
    def work(a):
        return 1 / a

    assert fallback(9)(work)(0) == 9
    assert fallback(9)(work)(1) == 1
    with pytest.raises(ZeroDivisionError):
        fallback(9, on=KeyError)(work)(0)
    with pytest.raises(TypeError, match="async fallback cannot answer"):
        fallback(failing(ValueError()))(work)(0)


async def test_it_stands_outside_a_breaker():
    sick = breaker(name="sick", fail_max=1)
    work = guard(fallback("cached"), sick)(failing(ValueError()))
    assert [await work(), await work()] == ["cached", "cached"]
    assert sick.state == "open"


# Streams


def stream(*items, error=None):
    async def work():
        for item in items:
            yield item
        if error is not None:
            raise error

    return work


async def test_a_stream_is_answered_before_its_first_item_only():
    assert [x async for x in fallback(stream(8, 9))(stream(error=ValueError()))()] == [8, 9]
    assert [x async for x in fallback("one")(stream(error=ValueError()))()] == ["one"]
    assert [x async for x in fallback("one")(stream(1, 2))()] == [1, 2]
    got = []
    with pytest.raises(ValueError):
        async for x in fallback("one")(stream(1, error=ValueError()))():
            got.append(x)
    assert got == [1]
    with pytest.raises(ValueError):
        [x async for x in fallback("one", on=KeyError)(stream(error=ValueError()))()]


async def test_a_stream_can_be_answered_by_a_coroutine_that_gives_one():
    async def items():
        return stream(1, 2)()

    assert [x async for x in fallback(items)(stream(error=ValueError()))()] == [1, 2]


async def test_a_stream_is_sent_to_thrown_at_and_closed():
    seen = []

    async def work():
        try:
            seen.append((yield 1))
            try:
                yield 2
            except KeyError:
                yield 3
        finally:
            seen.append("closed")

    source = fallback(0)(work)()
    assert await source.asend(None) == 1
    assert await source.asend("x") == 2
    assert await source.athrow(KeyError()) == 3
    await source.aclose()
    assert seen == ["x", "closed"]


async def test_a_generator_cannot_answer_a_plain_call():
    with pytest.raises(TypeError, match="answers streams only"):
        await fallback(stream(1))(failing(ValueError()))()


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: fallback(breaker(name="b")), TypeError, "not a guard"),
        (lambda: fallback(x for x in ()), TypeError, "only once"),
        (lambda: fallback(1, on=BaseException), TypeError, "on takes types of Exception"),
        (lambda: fallback(1, on="no"), TypeError, "on takes exception types"),
        (lambda: fallback(1, on=()), ValueError, "on takes at least one"),
    ],
)
def test_misuse_is_named(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_it_describes_itself_without_its_value():
    assert repr(fallback("secret")) == "<fallback 'fallback': a value, on failure, throttling and refusals>"
    assert fallback(int, on=KeyError).describe() == "fallback 'fallback': int, on KeyError"
    assert fallback(other, on=lambda exc: True).describe() == "fallback 'fallback': other, on a predicate"


async def test_a_classify_that_leaves_the_exception_out_does_not_lose_it():
    seen = []

    def answer(*, error):
        seen.append(error)
        return "answer"

    async def broken():
        raise KeyError("lost")

    assert await guard(fallback(answer), classify=lambda _: Outcome("failure"))(broken)() == "answer"
    assert [type(error) for error in seen] == [KeyError]
